// The end of a cut tile: its pieces lie in the workspace, and whichever block is last to write one
// joins them, always in the order of the keys: the same bits every time. Many pieces are joined in
// groups first, which different blocks do at the same time. In a cluster each block has its own
// rows of every piece.
#pragma once

#include "csrc/cuda/latent_inbox.h"

namespace mainboard::cuda {

template <class S>
class LatentJoin {
 public:
  // `thread` of the summing warpgroups', which all call what follows together. `rows` of the
  // tile's are the block's to join.
  __device__ LatentJoin(const LatentDecode& a, typename S::Control& control, int thread,
                        const LatentSegment& s, const LatentPieces& pieces, LatentRows rows)
      : a_(a), control_(control), thread_(thread), s_(s), pieces_(pieces), rows_(rows) {}

  // Counts in the block's piece, which has been written.
  __device__ void count_in() {
    int step = 1;
    sync();
    if (pieces_.pieces > kGroupPieces) {
      step = kGroupPieces;
      const int first = pieces_.piece / step * step, count = min(step, pieces_.pieces - first);
      if (!is_last(pieces_.own_slot(first), count)) return;
      gather(first, 1, count, false);
      sync();
    }
    const int count = ceil_div(pieces_.pieces, step);
    if (is_last(pieces_.own_counter(), count)) gather(0, step, count, true);
  }

  // Joins what came to the inbox: the whole rows, or the piece of them that the cluster has.
  __device__ void empty(const LatentInbox<S>& inbox) {
    for (int i = thread_; i < rows_.count * kQuads; i += kThreads) {
      LatentQuad own[1 << kMostLatentCluster], joined;
#pragma unroll
      for (int j = 0; j < 1 << kMostLatentCluster; ++j) {
        if (j < s_.sharers) own[j] = inbox.read(j, i / kQuads, i % kQuads);
      }
      joined.add(own);
      keep(i, pieces_.piece, joined, pieces_.pieces == 1, 0);
    }
    if (pieces_.pieces > 1 && rows_.count > 0) count_in();
  }

 private:
  static constexpr int kThreads = kGroupThreads * S::groups;
  static constexpr int kQuads = S::dim / 4;  // of a row's columns
  static constexpr int kGroupPieces = 16;

  __device__ static void sync() { named_barrier_sync(kSumsBarrier, kThreads); }

  // Whether this block was the last of `count`. Thread 0 speaks for all: the barrier before ordered
  // the other threads' writes. The blocks of a cluster count their rows separately.
  __device__ bool is_last(int of_cluster, int count) const {
    const int counter = (of_cluster << a_.cluster) + LatentRows::rank(a_);
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
  __device__ void gather(int first, int step, int count, bool whole) const {
    if (count <= 2) {
      gather_by<2, 6>(first, step, count, whole);
    } else {
      gather_by<8, 1>(first, step, count, whole);
    }
  }
  // A thread reads `pieces` of `kAtOnce` quads at once.
  template <int pieces, int kAtOnce>
  __device__ void gather_by(int first, int step, int count, bool whole) const {
    const float2* statistics = a_.workspace.statistics + (step > 1 ? a_.workspace.rows : 0);
    const float4* sums = reinterpret_cast<const float4*>(a_.workspace.sums);
    const int quads = rows_.count * kQuads;
#pragma unroll 1
    for (int begin = thread_; begin < quads; begin += kAtOnce * kThreads) {
      LatentQuad joined[kAtOnce];
#pragma unroll 1
      for (int piece = 0; piece < count; piece += pieces) {
        LatentQuad own[kAtOnce][pieces];
#pragma unroll
        for (int j = 0; j < pieces; ++j) {
          const int slot = pieces_.own_slot(first + min(piece + j, count - 1) * step);
#pragma unroll
          for (int k = 0; k < kAtOnce; ++k) {
            const int i = begin + k * kThreads;
            if (piece + j >= count || i >= quads) continue;
            const int64_t at = int64_t{slot} * a_.slot_rows + rows_.first + i / kQuads;
            own[k][j].sums = __ldcg(sums + at * kQuads + i % kQuads);
            own[k][j].statistics = __ldcg(statistics + at);
          }
        }
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) joined[k].add(own[k]);
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int i = begin + k * kThreads;
        if (i < quads) keep(i, first, joined[k], whole, a_.workspace.rows);
      }
    }
  }

  // Writes the block's `i`th quad, or keeps it as a piece's with its statistics `behind`.
  __device__ void keep(int i, int piece, const LatentQuad& x, bool whole, int64_t behind) const {
    const int row = rows_.first + i / kQuads, quad = i % kQuads;
    if (whole) return write(row, quad, x);
    const int64_t at = int64_t{pieces_.own_slot(piece)} * a_.slot_rows + row;
    __stcg(reinterpret_cast<float4*>(a_.workspace.sums + at * S::dim) + quad, x.sums);
    if (quad == 0) __stcg(a_.workspace.statistics + behind + at, x.statistics);
  }

  __device__ void write(int row, int quad, const LatentQuad& x) const {
    using T = typename S::T;
    const LatentPlace place(a_, s_, row);
    const float scale = output_scale(a_, x.statistics.y);
    T* to = static_cast<T*>(a_.out) + place.token * a_.out_token + place.head * a_.out_head;
    *(reinterpret_cast<uint2*>(to) + quad) = {pack<T>(x.sums.x * scale, x.sums.y * scale),
                                              pack<T>(x.sums.z * scale, x.sums.w * scale)};
    if (quad == 0) write_lse(a_, place, x.statistics.x, x.statistics.y);
  }

  const LatentDecode& a_;
  typename S::Control& control_;
  const int thread_;
  const LatentSegment& s_;
  const LatentPieces& pieces_;
  const LatentRows rows_;
};

}  // namespace mainboard::cuda
