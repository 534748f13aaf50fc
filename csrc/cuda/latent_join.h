// The end of a cut tile: its pieces lie in the workspace, and whichever block is last to write one
// joins them, always in the order of the keys: the same bits every time. Many pieces are joined in
// groups first, which different blocks do at the same time. In a cluster each block has its own
// rows of every piece.
#pragma once

#include "csrc/cuda/latent_inbox.h"

namespace mainboard::cuda {

// Which of a tile's results is number `i` in a slot: two columns of a row from `column` on, and two
// from `next` on. In clusters rows lie one after another; else every thread has what it sums, so
// that a warp writes 512 bytes at a time: with rows, writing a tile took 5 us.
template <class S>
struct LatentSpot {
  static constexpr int kQuads = S::dim / 4;  // of a row's columns
  int row, column, next;

  __device__ explicit LatentSpot(int i) {
    if constexpr (S::sharing) {
      row = i / kQuads;
      column = i % kQuads * 4;
      next = column + 2;
    } else {
      const int lane = i % 32;
      row = i / kWarp * 16 + i / 32 % 2 * 8 + lane / 4;
      column = i / kGroup % S::groups * S::group_columns + i / 64 % kPerRow * 16 + lane % 4 * 2;
      next = column + 8;
    }
  }
  // The number of the first that a warp of a group has, outside clusters; it has others 64 further
  // on, for 16 columns further on, and 32 further on, for its second row.
  __device__ static int of(int group, int warp, int lane) {
    return warp * kWarp + group * kGroup + lane;
  }

 private:
  static constexpr int kPerRow = S::group_columns / 16;  // of a thread's results
  static constexpr int kGroup = 64 * kPerRow, kWarp = S::groups * kGroup;
};

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
  static constexpr int kQuads = LatentSpot<S>::kQuads;
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
    const int quads = (S::sharing ? rows_.count : ceil_div(rows_.count, 16) * 16) * kQuads;
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
            const int row = LatentSpot<S>(i).row;
            if (piece + j >= count || i >= quads || row >= rows_.count) continue;
            const int64_t at = int64_t{slot} * a_.slot_rows + rows_.first;
            own[k][j].sums = __ldcg(sums + at * kQuads + i);
            own[k][j].statistics = __ldcg(statistics + at + row);
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
    const LatentSpot<S> spot(i);
    if (spot.row >= rows_.count) return;
    if (whole) return write(spot, x);
    const int64_t at = int64_t{pieces_.own_slot(piece)} * a_.slot_rows + rows_.first;
    __stcg(reinterpret_cast<float4*>(a_.workspace.sums) + at * kQuads + i, x.sums);
    if (spot.column == 0) __stcg(a_.workspace.statistics + behind + at + spot.row, x.statistics);
  }

  __device__ void write(const LatentSpot<S>& spot, const LatentQuad& x) const {
    using T = typename S::T;
    const LatentPlace place(a_, s_, rows_.first + spot.row);
    const float scale = output_scale(a_, x.statistics.y);
    T* to = static_cast<T*>(a_.out) + place.token * a_.out_token + place.head * a_.out_head;
    const uint32_t pairs[2] = {pack<T>(x.sums.x * scale, x.sums.y * scale),
                               pack<T>(x.sums.z * scale, x.sums.w * scale)};
    if constexpr (S::sharing) {
      *reinterpret_cast<uint2*>(to + spot.column) = {pairs[0], pairs[1]};
    } else {
      *reinterpret_cast<uint32_t*>(to + spot.column) = pairs[0];
      *reinterpret_cast<uint32_t*>(to + spot.next) = pairs[1];
    }
    if (spot.column == 0) write_lse(a_, place, x.statistics.x, x.statistics.y);
  }

  const LatentDecode& a_;
  typename S::Control& control_;
  const int thread_;
  const LatentSegment& s_;
  const LatentPieces& pieces_;
  const LatentRows rows_;
};

}  // namespace mainboard::cuda
