// The end of a segment: the warps' partial results become the block's, and the block's the tile's.
//
// A tile in one piece is written out. The pieces of a cut tile go to the workspace, and whichever
// block is last to arrive joins them, always in the order of the keys: the same bits every time.
#pragma once

#include "csrc/cuda/decode_tile.h"

namespace mainboard::cuda {

struct Sums {
  float4 x;

  __device__ void scale(float factor) {
    x.x *= factor;
    x.y *= factor;
    x.z *= factor;
    x.w *= factor;
  }
  __device__ void add(float4 y, float factor) {
    x.x += y.x * factor;
    x.y += y.y * factor;
    x.z += y.z * factor;
    x.w += y.w * factor;
  }
};

// What the block's threads share apart from the ring.
template <class S>
struct Shared {
  float2 warp_statistics[kWarps][kTileRows];  // maximum and total
  bool is_last;
};

template <class S>
class Finish {
 public:
  static constexpr int kQuads = S::dim / 4;  // of a row's columns
  static constexpr int kGroups = kWarps / S::row_tiles;
  static constexpr int kThreads = S::threads;
  static constexpr int kGroupPieces = 16;  // of a tile in very many pieces, joined first
  static constexpr int kManyPieces = 64;
  static constexpr int kInFlight = 16;  // pieces that a thread reads at once

  __device__ Finish(const Decode& a, Shared<S>& shared, int thread)
      : a_(a), shared_(shared), thread_(thread) {}

  // Keeps a warp's results where its last keys were: `stages` is that stage of warp 0. Every
  // reader of those must be done.
  __device__ void keep(const Tile<S>& tile, char* stages) {
    stages_ = stages;
    const int warp = thread_ / 32, lane = thread_ % 32;
    float* rows = warp_sums(warp);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = lane / 4 + 8 * r;
      const float total = quad_sum(tile.total[r]);
      if (lane % 4 == 0) shared_.warp_statistics[warp][row] = {tile.maximum[r], total};
      float* to = rows + row * S::sums_pitch;
#pragma unroll
      for (int step = 0; step < S::dim / 16; ++step) {
        const auto& even = tile.sums[2 * step];
        const auto& odd = tile.sums[2 * step + 1];
        if constexpr (S::fp8) {
          *reinterpret_cast<float4*>(to + step * 16 + lane % 4 * 4) = {
              even[2 * r], odd[2 * r], even[2 * r + 1], odd[2 * r + 1]};
        } else {
          float* at = to + step * 16 + lane % 4 * 2;
          *reinterpret_cast<float2*>(at) = {even[2 * r], even[2 * r + 1]};
          *reinterpret_cast<float2*>(at + 8) = {odd[2 * r], odd[2 * r + 1]};
        }
      }
    }
  }

  // Joins what the warps kept. All threads of the block call it, after a barrier.
  __device__ void join_warps(const Segment& s) {
    const int rows = used_rows(s);
    for (int i = thread_; i < rows * kQuads; i += kThreads) {
      const int row = i / kQuads, quad = i % kQuads;
      const int tile = row / kTileRows, in_tile = row % kTileRows;
      float most = -INFINITY, total = 0.0f;
#pragma unroll
      for (int g = 0; g < kGroups; ++g)
        most = fmaxf(most, shared_.warp_statistics[g * S::row_tiles + tile][in_tile].x);
      Sums sums{};
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const int warp = g * S::row_tiles + tile;
        const float2 own = shared_.warp_statistics[warp][in_tile];
        const float factor = own.x == -INFINITY ? 0.0f : exp2_approx(own.x - most);
        total += own.y * factor;
        const float* from = warp_sums(warp) + in_tile * S::sums_pitch + 4 * quad;
        sums.add(*reinterpret_cast<const float4*>(from), factor);
      }
      if (s.pieces == 1) {
        write(s, row, quad, sums, most, total);
      } else {
        keep_piece(s.slot(s.piece), row, quad, sums, {most, total}, 0);
      }
    }
  }

  // Counts the block's piece in, after a barrier. What that tells is waited for in `settle`, so
  // that the block can go on meanwhile.
  __device__ void arrive(const Segment& s) {
    if (thread_ == 0) before_ = count_in(s.pieces > kManyPieces ? s.slot(group_of(s)) : s.counter);
  }

  // If the block was the last to come, joins the pieces. Very many are joined in groups first,
  // which different blocks do at the same time. All threads call it, before the next `arrive`.
  __device__ void settle(const Segment& s) {
    int step = 1;
    if (s.pieces > kManyPieces) {
      step = kGroupPieces;
      const int first = group_of(s), count = min(step, s.pieces - first);
      if (!is_last(s.slot(first), count)) return;
      gather(s, first, 1, count, false);
      __syncthreads();
      if (thread_ == 0) before_ = count_in(s.counter);
    }
    const int count = ceil_div(s.pieces, step);
    if (is_last(s.counter, count)) gather(s, 0, step, count, true);
  }

 private:
  __device__ float* warp_sums(int warp) const {
    return reinterpret_cast<float*>(stages_ + warp * (S::stages * S::stage_bytes));
  }

  __device__ int used_rows(const Segment& s) const {
    return min(S::rows, s.sequence.queries * static_cast<int>(a_.group.value) - s.row);
  }

  __device__ static int group_of(const Segment& s) { return s.piece / kGroupPieces * kGroupPieces; }

  // Thread 0 speaks for the block: the barrier before ordered the other threads' writes.
  __device__ int count_in(int counter) {
    __threadfence();
    return atomicAdd(a_.workspace.counters + counter, 1);
  }

  // Whether this block was the last of `count`. All threads call it.
  __device__ bool is_last(int counter, int count) {
    if (thread_ == 0) {
      shared_.is_last = before_ == count - 1;
      if (shared_.is_last) a_.workspace.counters[counter] = 0;  // ready for the next call
      __threadfence();
    }
    __syncthreads();
    return shared_.is_last;
  }

  // Joins `count` pieces from `first` on, `step` apart, and writes the tile, or keeps their sums
  // in the slot of the first. Joined statistics lie behind those of the pieces.
  __device__ void gather(const Segment& s, int first, int step, int count, bool whole) {
    const float2* statistics = a_.workspace.statistics + (step > 1 ? a_.workspace.rows : 0);
    const int rows = used_rows(s);
    for (int i = thread_; i < rows * kQuads; i += kThreads) {
      const int row = i / kQuads, quad = i % kQuads;
      float most = -INFINITY, total = 0.0f;
      Sums sums{};
      for (int begin = 0; begin < count; begin += kInFlight) {
        float2 own[kInFlight];
        float4 x[kInFlight];
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) {
          const int piece = first + min(begin + j, count - 1) * step;
          const int64_t at = int64_t{s.slot(piece)} * a_.slot_rows + row;
          own[j] = __ldcg(statistics + at);
          x[j] = __ldcg(reinterpret_cast<float4*>(a_.workspace.sums + at * S::dim) + quad);
          if (begin + j >= count) own[j].x = -INFINITY;
        }
        float larger = most;
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) larger = fmaxf(larger, own[j].x);
        if (larger == -INFINITY) continue;
        const float shrink = exp2_approx(most - larger);
        most = larger;
        total *= shrink;
        sums.scale(shrink);
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) {
          const float factor = exp2_approx(own[j].x - most);
          total += own[j].y * factor;
          if (factor > 0.0f) sums.add(x[j], factor);
        }
      }
      if (whole) {
        write(s, row, quad, sums, most, total);
      } else {
        keep_piece(s.slot(first), row, quad, sums, {most, total}, a_.workspace.rows);
      }
    }
  }

  __device__ void keep_piece(int slot, int row, int quad, Sums sums, float2 own, int64_t behind) {
    const int64_t at = int64_t{slot} * a_.slot_rows + row;
    __stcg(reinterpret_cast<float4*>(a_.workspace.sums + at * S::dim) + quad, sums.x);
    if (quad == 0) __stcg(a_.workspace.statistics + behind + at, own);
  }

  // Four columns of a finished row.
  __device__ void write(const Segment& s, int row, int quad, Sums sums, float most, float total) {
    using T = typename S::T;
    const RowPlace place(a_, s, s.row + row);
    float factor = a_.v_scale ? a_.v_scale[s.head * a_.v_scale_stride] : 1.0f;
    if (a_.sinks) {
      const float sink = a_.sinks[place.head] * kLog2E;
      const float larger = fmaxf(most, sink);
      const float shrink = larger == -INFINITY ? 0.0f : exp2_approx(most - larger);
      total *= shrink;
      factor *= shrink;
      if (larger != -INFINITY) total += exp2_approx(sink - larger);
      most = larger;
    }
    const float scale = total > 0.0f ? factor / total : 0.0f;
    const uint2 packed = {pack<T>(sums.x.x * scale, sums.x.y * scale),
                          pack<T>(sums.x.z * scale, sums.x.w * scale)};
    T* to = static_cast<T*>(a_.out) + place.token * a_.out_token + place.head * a_.out_head;
    *(reinterpret_cast<uint2*>(to) + quad) = packed;
    if (a_.lse && quad == 0) {
      a_.lse[place.head * a_.lse_head + place.token] =
          total > 0.0f ? (most + __log2f(total)) * kLn2 : -INFINITY;
    }
  }

  const Decode& a_;
  Shared<S>& shared_;
  const int thread_;
  char* stages_ = nullptr;
  int before_ = 0;  // thread 0: what it found when it counted the block in
};

}  // namespace mainboard::cuda
