// The end of a cut tile: its pieces lie in the workspace, and whichever block is last to write one
// joins them, always in the order of the keys: the same bits every time. Many pieces are joined in
// groups first, which different blocks do at the same time.
#pragma once

#include "csrc/cuda/latent_shape.h"

namespace mainboard::cuda {

template <class S>
class LatentJoin {
 public:
  // `thread` of the computing warpgroups', which all call what follows together.
  __device__ LatentJoin(const LatentDecode& a, typename S::Control& control, int thread)
      : a_(a), control_(control), thread_(thread) {}

  // Counts in the block's piece, which has been written.
  __device__ void count_in(const LatentSegment& s) {
    int step = 1;
    sync();
    if (s.pieces > kGroupPieces) {
      step = kGroupPieces;
      const int first = s.piece / step * step, count = min(step, s.pieces - first);
      if (!is_last(s.slot(first), count)) return;
      gather(s, first, 1, count, false);
      sync();
    }
    const int count = ceil_div(s.pieces, step);
    if (is_last(s.counter, count)) gather(s, 0, step, count, true);
  }

 private:
  static constexpr int kThreads = kGroupThreads * S::groups;
  static constexpr int kQuads = S::dim / 4;  // of a row's columns
  static constexpr int kGroupPieces = 16, kInFlight = 8;

  __device__ static void sync() { named_barrier_sync(kWorkersBarrier, kThreads); }

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

  // Joins `count` pieces from `first` on, `step` apart, and writes the tile, or keeps their sums
  // in the slot of the first. Joined statistics lie behind those of the pieces.
  __device__ void gather(const LatentSegment& s, int first, int step, int count, bool whole) const {
    const float2* statistics = a_.workspace.statistics + (step > 1 ? a_.workspace.rows : 0);
    const int rows = min(S::rows, s.queries * static_cast<int>(a_.heads.value) - s.row);
    for (int i = thread_; i < rows * kQuads; i += kThreads) {
      const int row = i / kQuads, quad = i % kQuads;
      float2 joined = {-INFINITY, 0.0f};  // reference and total
      float4 sums = {};
      for (int begin = 0; begin < count; begin += kInFlight) {
        float2 own[kInFlight];
        float4 x[kInFlight];
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) {
          own[j] = {-INFINITY, 0.0f};
          x[j] = {};
          if (begin + j >= count) continue;
          const int64_t at = int64_t{s.slot(first + (begin + j) * step)} * a_.slot_rows + row;
          own[j] = __ldcg(statistics + at);
          x[j] = __ldcg(reinterpret_cast<const float4*>(a_.workspace.sums + at * S::dim) + quad);
        }
        float most = joined.x;
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) most = fmaxf(most, own[j].x);
        if (most == -INFINITY) continue;
        const float shrink = exp2_approx(joined.x - most);
        joined = {most, joined.y * shrink};
        sums = {sums.x * shrink, sums.y * shrink, sums.z * shrink, sums.w * shrink};
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) {
          const float factor = exp2_approx(own[j].x - most);
          joined.y += own[j].y * factor;
          add(sums, x[j], factor);
        }
      }
      if (whole) {
        write(s, row, quad, sums, joined);
      } else {
        const int64_t at = int64_t{s.slot(first)} * a_.slot_rows + row;
        __stcg(reinterpret_cast<float4*>(a_.workspace.sums + at * S::dim) + quad, sums);
        if (quad == 0) __stcg(a_.workspace.statistics + a_.workspace.rows + at, joined);
      }
    }
  }
  __device__ static void add(float4& sums, float4 x, float factor) {
    sums.x += x.x * factor;
    sums.y += x.y * factor;
    sums.z += x.z * factor;
    sums.w += x.w * factor;
  }

  __device__ void write(const LatentSegment& s, int row, int quad, float4 sums,
                        float2 joined) const {
    using T = typename S::T;
    const LatentPlace place(a_, s, row);
    const float scale = output_scale(a_, joined.y);
    T* to = static_cast<T*>(a_.out) + place.token * a_.out_token + place.head * a_.out_head;
    *(reinterpret_cast<uint2*>(to) + quad) = {pack<T>(sums.x * scale, sums.y * scale),
                                              pack<T>(sums.z * scale, sums.w * scale)};
    if (quad == 0) write_lse(a_, place, joined.x, joined.y);
  }

  const LatentDecode& a_;
  typename S::Control& control_;
  const int thread_;
};

}  // namespace mainboard::cuda
