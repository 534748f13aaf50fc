// The warpgroups of the latent decode kernel that sum the values, half of the columns each, and
// write results.
#pragma once

#include "csrc/cuda/latent_join.h"

namespace mainboard::cuda {

template <class S>
class Summer {
 public:
  using T = typename S::T;
  using Control = typename S::Control;

  __device__ Summer(const LatentDecode& a, uint32_t shared, Control& control, int group)
      : a_(a),
        shared_(shared),
        control_(control),
        group_(group),
        warp_(uniform(threadIdx.x % kGroupThreads / 32)),
        lane_(threadIdx.x % 32) {}

  __device__ void run() {
    SegmentReader<S> segments(control_);
    while (const LatentSegment* s = segments.next()) {
      const int unit = uniform(s->unit), end = uniform(s->unit_end);
      walk(unit, end, uniform(s->keys));
      read_statistics(unit < end, segments.number() % 2);
      const int thread = threadIdx.x % kGroupThreads + group_ * kGroupThreads;
      const LatentPieces& pieces = segments.pieces();
      LatentJoin<S> join(a_, control_, thread, *s, pieces, LatentRows(a_, *s));
      if constexpr (S::sharing) {
        const LatentInbox<S> inbox(a_, shared_, control_, *s, segments.number());
        share(inbox, *s, thread);
        join.empty(inbox);
        publish_to_units();
        named_barrier_sync(kSumsBarrier, kGroupThreads * S::groups);
        if (thread == 0) barrier_arrive(&control_.joined);
      } else {
        write(*s, pieces);
        if (pieces.pieces > 1) join.count_in();
      }
      segments.release();
    }
  }

 private:
  static constexpr int kSteps = S::unit_keys / 16;
  using Weights = uint32_t[kSteps][4];

  __device__ int row(int r) const { return 16 * warp_ + lane_ / 4 + 8 * r; }

  // The group's columns lie in two halves one after another; see wgmma.h.
  __device__ float& sum(int i) {
    return sums_[i / (S::group_columns / 4)][i % (S::group_columns / 4)];
  }

  __device__ void walk(int unit, int end, int keys) {
#pragma unroll
    for (int i = 0; i < S::group_columns / 2; ++i) sum(i) = 0.0f;
    const uint32_t weights_at = weights_of<S>(shared_);
    for (; unit < end; ++unit, ++count_) {
      const bool cut = (unit + 1) * S::unit_keys > keys;
      barrier_wait(&control_.weights_full, count_ & 1);
      const float2 factors = load_pair(shared_address(&control_.shrink[8 * warp_ + lane_ / 4]));
      Weights weights;
#pragma unroll
      for (int i = 0; i < kSteps; ++i) load_four(weights[i], weights_at + i * kWeightsStep);
      shrink(factors);
      if (__builtin_expect(cut, 0)) clear_tail(max(0, keys - unit * S::unit_keys));
      multiply(weights, unit + 1 == end);
    }
  }

  __device__ void shrink(float2 factors) {
    const bool all_stay = __all_sync(0xffffffffu, factors.x == 1.0f && factors.y == 1.0f);
    if (__builtin_expect(all_stay, 1)) return;
#pragma unroll
    for (int i = 0; i < S::group_columns / 2; ++i) sum(i) *= i / 2 % 2 ? factors.y : factors.x;
  }

  __device__ void read_statistics(bool any, int which) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float2 x = any ? control_.statistics[which][row(r)] : float2{-INFINITY, 0.0f};
      reference_[r] = x.x;
      total_[r] = x.y;
    }
  }

  static constexpr int kOwnPanels = S::value_panels / S::groups / 2;  // of a half
  // The group's panels of a half.
  __device__ uint32_t values_at(const LatentTurn<S>& turn) const {
    return shared_ + S::keys_at + turn.slot * S::slot_bytes + group_ * kOwnPanels * S::panel_bytes;
  }

  // Zeros the values past the sequence's end, whose weight is zero: they may be no numbers.
  __device__ void clear_tail(int from) const {
    const int chunks = (S::unit_keys - from) * (kPanelRowBytes / 16);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const LatentTurn<S> turn = turn_.after(half);
      barrier_wait(&control_.full[turn.slot], turn.parity);
#pragma unroll
      for (int panel = 0; panel < kOwnPanels; ++panel) {
        const uint32_t to = values_at(turn) + panel * S::panel_bytes + from * kPanelRowBytes;
        for (int i = threadIdx.x % kGroupThreads; i < chunks; i += kGroupThreads) {
          store_zeros(to + i * 16);
        }
      }
    }
    publish_to_units();
    named_barrier_sync(kTailBarriers + group_, kGroupThreads);
  }

  // Adds weights * values, half of the group's columns after the other. The second half leaves the
  // matrix units to the next unit's scores, if those keys are there: so that there is something to
  // multiply while these scores become weights.
  __device__ void multiply(const Weights& weights, bool last) {
    multiply_half<0>(weights);
    barrier_arrive(&control_.weights_empty);
    give_back<0>();
    if (!last) let_next_be_scored();
    multiply_half<1>(weights);
    give_back<1>();
  }
  template <int half>
  __device__ void multiply_half(const Weights& weights) {
    const uint64_t v = operand_of_columns(without_rank(values_at(turn_)), S::panel_bytes);
    hold(sums_[half]);
    begin_products();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      Product<T, S::group_columns / 2>::columns(sums_[half], weights[step],
                                                advanced(v, step * 16 * kPanelRowBytes), 1);
    }
    commit_products();
  }
  template <int half>
  __device__ void give_back() {
    wait_for_products<0>(sums_[half]);
    release_keys<S>(&control_.empty[turn_.slot]);
    turn_ = turn_.after(1);
  }
  // Waits until the next unit is scored, unless its keys are still to come.
  __device__ void let_next_be_scored() const {
    const LatentTurn<S> next = turn_.after(2);
    if (uniform(barrier_ended(&control_.full[next.slot], next.parity))) {
      barrier_wait(&control_.scored, (count_ + 1) & 1);
    }
  }

  // Sends the block's sums to those of its cluster that join them, four columns at a time: a lane
  // has two, and the two beside them from its neighbour.
  __device__ void share(const LatentInbox<S>& inbox, const LatentSegment& s, int thread) {
    named_barrier_sync(kSumsBarrier, kGroupThreads * S::groups);
    inbox.open(thread == 0, LatentRows(a_, s).count, s.sharers);
    if (s.unit < s.unit_end) {
      send<0>(inbox);
      send<1>(inbox);
    }
    inbox.wait();
  }

  template <int r>
  __device__ void send(const LatentInbox<S>& inbox) {
    const bool odd = lane_ % 2 != 0, used = inbox.has(row(r));
    if (!__any_sync(0xffffffffu, used)) return;
    const auto way = inbox.way(row(r));
    if (used && group_ == 0 && lane_ % 4 == 0) {
      cuda::send(way.statistics, float2{reference_[r], total_[r]}, way.full);
    }
    const int column = group_ * S::group_columns + (odd ? 8 : 0) + lane_ % 4 / 2 * 4;
    const uint32_t to = way.sums + column * static_cast<int>(sizeof(float));
#pragma unroll
    for (int i = 0; i < S::group_columns / 16; ++i) {
      const float2 mine = {sum(8 * i + 2 * r), sum(8 * i + 2 * r + 1)};
      const float2 next = {sum(8 * i + 4 + 2 * r), sum(8 * i + 4 + 2 * r + 1)};
      const float2 give = odd ? mine : next;
      const float2 got = {__shfl_xor_sync(0xffffffffu, give.x, 1),
                          __shfl_xor_sync(0xffffffffu, give.y, 1)};
      const float4 four =
          odd ? float4{got.x, got.y, next.x, next.y} : float4{mine.x, mine.y, got.x, got.y};
      if (used) cuda::send(to + i * 16 * static_cast<int>(sizeof(float)), four, way.full);
    }
  }

  // Writes the rows, or what this piece has of them into the workspace.
  __device__ void write(const LatentSegment& s, const LatentPieces& pieces) {
    const int64_t slot = int64_t{pieces.own_slot(pieces.piece)} * a_.slot_rows;
    float4* to = reinterpret_cast<float4*>(a_.workspace.sums) + slot * LatentSpot<S>::kQuads +
                 LatentSpot<S>::of(group_, warp_, lane_);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const LatentPlace place(a_, s, row(r));
      if (pieces.pieces == 1) {
        write_row(place, r);
      } else if (place.used) {
#pragma unroll
        for (int i = 0; i < S::group_columns / 16; ++i) {
          const int at = 8 * i + 2 * r;
          __stcg(to + 64 * i + 32 * r, float4{sum(at), sum(at + 1), sum(at + 4), sum(at + 5)});
        }
        if (group_ == 0 && lane_ % 4 == 0) {
          __stcg(a_.workspace.statistics + slot + row(r), float2{reference_[r], total_[r]});
        }
      }
    }
  }

  // Each lane of four has two columns of every eight, and writes all eight of every fourth eight.
  __device__ void write_row(const LatentPlace& place, int r) {
    const float scale = output_scale(a_, total_[r]);
    T* to = static_cast<T*>(a_.out) + place.token * a_.out_token + place.head * a_.out_head +
            group_ * S::group_columns + lane_ % 4 * 8;
#pragma unroll
    for (int i = 0; i < S::group_columns / 32; ++i) {
      uint32_t pairs[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = 4 * (4 * i + j) + 2 * r;
        pairs[j] = pack<T>(sum(at) * scale, sum(at + 1) * scale);
      }
      transpose_quad(pairs, lane_);
      if (place.used) {
        *reinterpret_cast<uint4*>(to + 32 * i) = {pairs[0], pairs[1], pairs[2], pairs[3]};
      }
    }
    if (place.used && group_ == 0 && lane_ % 4 == 0) {
      write_lse(a_, place, reference_[r], total_[r]);
    }
  }

  const LatentDecode& a_;
  const uint32_t shared_;
  Control& control_;
  const int group_, warp_, lane_;
  float sums_[2][S::group_columns / 4];
  float reference_[2], total_[2];
  LatentTurn<S> turn_;  // of the half at hand
  int count_ = 0;       // units before the one at hand
};

}  // namespace mainboard::cuda
