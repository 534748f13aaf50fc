// The end of a cut tile: its pieces lie in the workspace, and whichever block is last to write one
// joins them, always in the order of the keys: the same bits every time. Many pieces are joined in
// groups first, which different blocks do at the same time.
#pragma once

#include "csrc/cuda/latent_shape.h"

namespace mainboard::cuda {

template <class S>
class LatentJoin {
 public:
  // `thread` of the summing warpgroups', which all call what follows together.
  __device__ LatentJoin(const LatentDecode& a, typename S::Control& control, int thread)
      : a_(a), control_(control), thread_(thread) {}

  // Counts in the block's piece, which has been written.
  __device__ void count_in(const LatentSegment& s) {
    int step = 1;
    sync();
    if (s.pieces > kGroupPieces) {
      step = kGroupPieces;
      const int first = s.piece / step * step, count = min(step, s.pieces - first);
      if (!is_last(s.own_slot(first), count)) return;
      gather(s, first, 1, count, false);
      sync();
    }
    const int count = ceil_div(s.pieces, step);
    if (is_last(s.own_counter(), count)) gather(s, 0, step, count, true);
  }

 private:
  static constexpr int kThreads = kGroupThreads * S::groups;
  static constexpr int kQuads = S::dim / 4;  // of a row's columns
  static constexpr int kGroupPieces = 16;

  __device__ static void sync() { named_barrier_sync(kSumsBarrier, kThreads); }

  // Whether this block was the last of `count`. Thread 0 speaks for all: the barrier before ordered
  // the other threads' writes.
  __device__ bool is_last(int counter, int count) const {
    if (thread_ == 0) {
      __threadfence();
      control_.is_last = atomicAdd(a_.workspace.counters + counter, 1) == count - 1;
      if (control_.is_last) a_.workspace.counters[counter] = 0;  // ready for the next call
      __threadfence();
    }
    sync();
    return control_.is_last;
  }

  // Four columns of a row: sums, and what they are relative to and are to be divided by.
  struct Quad {
    float4 sums = {};
    float2 statistics = {-INFINITY, 0.0f};
  };

  // Joins `count` pieces from `first` on, `step` apart, and writes the tile, or keeps their sums
  // in the slot of the first. Joined statistics lie behind those of the pieces.
  __device__ void gather(const LatentSegment& s, int first, int step, int count, bool whole) const {
    if (count <= 2) {
      gather_by<2, 6>(s, first, step, count, whole);
    } else {
      gather_by<8, 1>(s, first, step, count, whole);
    }
  }
  // A thread reads `pieces` of `kAtOnce` quads at once.
  template <int pieces, int kAtOnce>
  __device__ void gather_by(const LatentSegment& s, int first, int step, int count,
                            bool whole) const {
    const float2* statistics = a_.workspace.statistics + (step > 1 ? a_.workspace.rows : 0);
    const float4* sums = reinterpret_cast<const float4*>(a_.workspace.sums);
    const int rows = min(S::rows, s.queries * static_cast<int>(a_.heads.value) - s.row);
    const int quads = rows * kQuads;
#pragma unroll 1
    for (int begin = thread_; begin < quads; begin += kAtOnce * kThreads) {
      Quad joined[kAtOnce];
#pragma unroll 1
      for (int piece = 0; piece < count; piece += pieces) {
        Quad own[kAtOnce][pieces];
#pragma unroll
        for (int j = 0; j < pieces; ++j) {
          const int slot = s.own_slot(first + min(piece + j, count - 1) * step);
#pragma unroll
          for (int k = 0; k < kAtOnce; ++k) {
            const int i = begin + k * kThreads;
            if (piece + j >= count || i >= quads) continue;
            const int64_t at = int64_t{slot} * a_.slot_rows + i / kQuads;
            own[k][j].sums = __ldcg(sums + at * kQuads + i % kQuads);
            own[k][j].statistics = __ldcg(statistics + at);
          }
        }
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) add(joined[k], own[k]);
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (begin + k * kThreads < quads) keep(s, begin + k * kThreads, first, joined[k], whole);
      }
    }
  }
  template <int pieces>
  __device__ static void add(Quad& all, const Quad (&own)[pieces]) {
    float reference = all.statistics.x;
#pragma unroll
    for (const Quad& x : own) reference = fmaxf(reference, x.statistics.x);
    if (reference == -INFINITY) return;
    scale(all, exp2_approx(all.statistics.x - reference));
    all.statistics.x = reference;
#pragma unroll
    for (Quad x : own) {
      scale(x, exp2_approx(x.statistics.x - reference));
      all.statistics.y += x.statistics.y;
      all.sums.x += x.sums.x;
      all.sums.y += x.sums.y;
      all.sums.z += x.sums.z;
      all.sums.w += x.sums.w;
    }
  }
  __device__ static void scale(Quad& x, float factor) {
    x.statistics.y *= factor;
    x.sums.x *= factor;
    x.sums.y *= factor;
    x.sums.z *= factor;
    x.sums.w *= factor;
  }

  __device__ void keep(const LatentSegment& s, int i, int first, const Quad& x, bool whole) const {
    const int row = i / kQuads, quad = i % kQuads;
    if (whole) return write(s, row, quad, x);
    const int64_t at = int64_t{s.own_slot(first)} * a_.slot_rows + row;
    __stcg(reinterpret_cast<float4*>(a_.workspace.sums + at * S::dim) + quad, x.sums);
    if (quad == 0) __stcg(a_.workspace.statistics + a_.workspace.rows + at, x.statistics);
  }

  __device__ void write(const LatentSegment& s, int row, int quad, const Quad& x) const {
    using T = typename S::T;
    const LatentPlace place(a_, s, row);
    const float scale = output_scale(a_, x.statistics.y);
    T* to = static_cast<T*>(a_.out) + place.token * a_.out_token + place.head * a_.out_head;
    *(reinterpret_cast<uint2*>(to) + quad) = {pack<T>(x.sums.x * scale, x.sums.y * scale),
                                              pack<T>(x.sums.z * scale, x.sums.w * scale)};
    if (quad == 0) write_lse(a_, place, x.statistics.x, x.statistics.y);
  }

  const LatentDecode& a_;
  typename S::Control& control_;
  const int thread_;
};

}  // namespace mainboard::cuda
