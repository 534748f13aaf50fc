// The end of a segment: the warps' partial results become the block's, and the block's the tile's.
//
// A tile in one piece is written out. The pieces of a cut tile go to the workspace, and whichever
// block is last to arrive joins them, always in the order of the keys: the same bits every time.
#pragma once

#include "csrc/cuda/decode_tile.h"

namespace mainboard::cuda {

struct Sums {
  float4 x;

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
  float2 row_statistics[S::rows];             // of a tile that is being joined
  int arrived;
};

template <class S>
class Finish {
 public:
  static constexpr int kQuads = S::dim / 4;  // of a row's columns
  static constexpr int kGroups = kWarps / S::row_tiles;
  static constexpr int kThreads = 32 * kWarps;

  // `stages` is where stage `stage` of warp 0 is.
  __device__ Finish(const Decode& a, Shared<S>& shared, char* stages, int thread)
      : a_(a), shared_(shared), stages_(stages), thread_(thread) {}

  // Keeps a warp's results where its last keys were. Every reader of those must be done.
  __device__ void keep(const Tile<S>& tile) {
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
        const int64_t at = int64_t{s.slot(s.piece)} * a_.slot_rows + row;
        __stcg(reinterpret_cast<float4*>(a_.workspace.sums + at * S::dim) + quad, sums.x);
        if (quad == 0) __stcg(a_.workspace.statistics + at, make_float2(most, total));
      }
    }
  }

  // Counts this block's piece in; the last to come joins all pieces. Ends with a barrier.
  __device__ void join_pieces(const Segment& s) {
    __threadfence();
    __syncthreads();
    int* counter = a_.workspace.counters + s.counter;
    if (thread_ == 0) {
      const int before = atomicAdd(counter, 1);
      if (before == s.pieces - 1) *counter = 0;  // ready for the next call
      shared_.arrived = before;
    }
    __syncthreads();
    if (shared_.arrived != s.pieces - 1) return;
    __threadfence();
    gather_statistics(s);
    __syncthreads();
    const int rows = used_rows(s);
    for (int i = thread_; i < rows * kQuads; i += kThreads) {
      const int row = i / kQuads, quad = i % kQuads;
      const float2 whole = shared_.row_statistics[row];
      Sums sums{};
#pragma unroll 8
      for (int piece = 0; piece < s.pieces; ++piece) {
        const int64_t at = int64_t{s.slot(piece)} * a_.slot_rows + row;
        const float most = __ldcg(a_.workspace.statistics + at).x;
        const float4* from = reinterpret_cast<const float4*>(a_.workspace.sums + at * S::dim);
        sums.add(__ldcg(from + quad), most == -INFINITY ? 0.0f : exp2_approx(most - whole.x));
      }
      write(s, row, quad, sums, whole.x, whole.y);
    }
  }

 private:
  __device__ float* warp_sums(int warp) const {
    return reinterpret_cast<float*>(stages_ + warp * (S::stages * S::stage_bytes));
  }

  __device__ int used_rows(const Segment& s) const {
    return min(S::rows, s.sequence.queries * static_cast<int>(a_.group.value) - s.row);
  }

  // Each row's maximum and total over all pieces: a warp for a row, a lane for a piece.
  __device__ void gather_statistics(const Segment& s) {
    for (int row = thread_ / 32; row < used_rows(s); row += kWarps) {
      float most = -INFINITY, total = 0.0f;
      for (int piece = thread_ % 32; piece < s.pieces; piece += 32) {
        const int64_t at = int64_t{s.slot(piece)} * a_.slot_rows + row;
        const float2 own = __ldcg(a_.workspace.statistics + at);
        const float larger = fmaxf(most, own.x);
        if (larger != -INFINITY)
          total = total * exp2_approx(most - larger) + own.y * exp2_approx(own.x - larger);
        most = larger;
      }
      for (int step = 16; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, most, step);
        const float add = __shfl_xor_sync(0xffffffffu, total, step);
        const float larger = fmaxf(most, other);
        if (larger != -INFINITY)
          total = total * exp2_approx(most - larger) + add * exp2_approx(other - larger);
        most = larger;
      }
      if (thread_ % 32 == 0) shared_.row_statistics[row] = {most, total};
    }
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
  char* const stages_;
  const int thread_;
};

}  // namespace mainboard::cuda
