// The warpgroups of the latent decode kernel that turn queries and keys into weights.
//
// Weights are relative to a reference, which follows the maximum of the scores only where that has
// grown by much: what was summed before must then shrink. Every weight stays below
// 2 ** kSlack, which loses no precision, and most units leave the sums alone.
#pragma once

#include "csrc/cuda/latent_shape.h"

namespace mainboard::cuda {

template <class S>
class Scorer {
 public:
  using T = typename S::T;
  using Control = typename S::Control;

  __device__ Scorer(const LatentDecode& a, uint32_t shared, Control& control, int group)
      : a_(a),
        shared_(shared),
        control_(control),
        group_(group),
        warp_(uniform(threadIdx.x % kGroupThreads / 32)),
        lane_(threadIdx.x % 32) {}

  __device__ void run() {
    if (S::score_groups == 2 && group_ == 1) pass_reference();
    SegmentReader<S> segments(control_);
    while (const LatentSegment* s = segments.next()) {
      enter(*s);
      const int first = s->unit, end = s->unit_end;
      barrier_wait(&control_.q_full, segments.number() % 2);
      segments.release();
      bool needs_queries = true;
      for (int unit = first; unit < end; ++unit, ++count_) {
        if (S::score_groups == 2 && count_ % 2 != group_) continue;
        const bool last = unit + S::score_groups >= end;  // of this warpgroup
        float scores[S::unit_keys / 2];
        multiply(scores, last);
        needs_queries &= !last;
        weigh(scores, unit * S::unit_keys, unit == first, last);
      }
      if (needs_queries) release_warp(&control_.q_empty);
    }
  }

 private:
  static constexpr float kSlack = 8.0f;

  __device__ int row(int r) const { return 16 * warp_ + lane_ / 4 + 8 * r; }

  __device__ void enter(const LatentSegment& s) {
    scale_ = a_.scale_log2 * (a_.kv_scale ? a_.kv_scale[0] : 1.0f);
    const int before = s.keys - s.queries;
    all_to_ = min(s.keys, before + a_.heads.divide(s.row) + a_.right + 1);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const LatentPlace place(a_, s, row(r));
      const int query = place.token - s.first_query;
      end_[r] = min(s.keys, before + query + a_.right + 1);
      reference_[r] = -INFINITY;
      total_[r] = 0.0f;
      const T* from = static_cast<const T*>(a_.q) + place.token * a_.q_token +
                      place.head * a_.q_head + S::dim + lane_ % 4 * 2;
#pragma unroll
      for (int i = 0; i < 8; ++i) {  // eight columns each; see wgmma.h
        uint32_t& pair = rotary_[i / 2 * 4 + i % 2 * 2 + r];
        pair = place.used ? *reinterpret_cast<const uint32_t*>(from + 8 * i) : 0;
      }
    }
  }

  // The products of the tile's queries and the unit's keys, panel by panel as they arrive.
  __device__ void multiply(float (&scores)[S::unit_keys / 2], bool last) {
    const LatentTurn<S> at(count_);
    // The compiler must not know that this is the same every time: it would keep all operands.
    const uint32_t shared = shared_ + min(count_, 0);
    const uint64_t q = operand_of_rows(shared);
    const uint64_t k = operand_of_rows(shared + S::keys_at + at.stage * S::panels * S::panel_bytes);
    uint64_t* full = control_.full[at.stage];
    barrier_wait(&full[S::rotary], at.parity);
    begin_products();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      Product<T, S::unit_keys>::rows(scores, rotary_ + 4 * step,
                                     advanced(k, S::rotary * S::panel_bytes + step * 32), step > 0);
    }
#pragma unroll
    for (int panel = 0; panel < S::value_panels; ++panel) {
      barrier_wait(&full[panel], at.parity);
      begin_products();
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        const uint32_t bytes = panel * S::panel_bytes + step * 32;
        Product<T, S::unit_keys>::rows(scores, advanced(q, bytes), advanced(k, bytes), 1);
      }
    }
    commit_products();
    wait_for_products<0>(scores);
    release_warp(&control_.rotary_empty[at.stage]);
    if (last) release_warp(&control_.q_empty);
  }

  // Turns scores into weights in shared memory, for the summing warpgroups.
  __device__ void weigh(float (&scores)[S::unit_keys / 2], int key, bool first, bool last) {
    float most[2];
    see(scores, key, most);
    float shrink[2];
    move_reference(most, first, shrink);
    uint32_t weights[S::unit_keys / 4];
#pragma unroll
    for (int i = 0; i < S::unit_keys / 4; ++i) {  // the sums' layout is the operand's
      const float base = reference_[i % 2] == -INFINITY ? 0.0f : reference_[i % 2];
      const float low = exp2_approx(scores[2 * i] - base);
      const float high = exp2_approx(scores[2 * i + 1] - base);
      total_[i % 2] += low + high;
      weights[i] = pack<T>(low, high);
    }
    hand_over(weights, shrink, last);
  }

  // Scores in log2 units, those of keys that are not seen at minus infinity, and their maxima.
  __device__ void see(float (&scores)[S::unit_keys / 2], int key, float (&most)[2]) const {
    if (key + S::unit_keys <= all_to_) {
#pragma unroll
      for (float& x : scores) x *= scale_;
    } else {
#pragma unroll
      for (int i = 0; i < S::unit_keys / 2; ++i) {
        const int at = key + i / 4 * 8 + lane_ % 4 * 2 + i % 2;
        scores[i] = at < end_[i / 2 % 2] ? scores[i] * scale_ : -INFINITY;
      }
    }
    most[0] = scores[0];
    most[1] = scores[2];
#pragma unroll
    for (int i = 0; i < S::unit_keys / 2; ++i) most[i / 2 % 2] = fmaxf(most[i / 2 % 2], scores[i]);
#pragma unroll
    for (int r = 0; r < 2; ++r) most[r] = quad_max(most[r]);
  }

  // The unit's reference, from that of the unit before it, and what follows for the sums.
  __device__ void move_reference(const float (&most)[2], bool first, float (&shrink)[2]) {
    float before[2] = {reference_[0], reference_[1]};
    if constexpr (S::score_groups == 2) {
      take_reference();
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        before[r] = first ? -INFINITY : control_.reference[1 - group_][row(r)];
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float own = reference_[r];
      reference_[r] = most[r] > before[r] + kSlack ? most[r] : before[r];
      shrink[r] = factor(before[r], reference_[r]);
      total_[r] *= S::score_groups == 2 ? factor(own, reference_[r]) : shrink[r];
      if (S::score_groups == 2 && lane_ % 4 == 0) {
        control_.reference[group_][row(r)] = reference_[r];
      }
    }
    if constexpr (S::score_groups == 2) pass_reference();
  }
  __device__ static float factor(float from, float to) {
    return from == to ? 1.0f : exp2_approx(from - to);
  }

  // The scoring warpgroups take turns at the reference, each warp with the one of the same rows.
  __device__ void take_reference() const {
    named_barrier_sync(kReferenceBarriers + 4 * group_ + warp_, 64);
  }
  __device__ void pass_reference() const {
    named_barrier_arrive(kReferenceBarriers + 4 * (1 - group_) + warp_, 64);
  }

  __device__ void hand_over(const uint32_t (&weights)[S::unit_keys / 4], const float (&shrink)[2],
                            bool last) {
    const LatentTurn<S> at(count_);
    barrier_wait(&control_.weights_empty[at.stage], at.parity ^ 1);
    const int to_row = 16 * warp_ + lane_ % 16;
    const uint32_t to =
        shared_ + S::weights_at + at.stage * S::panel_bytes + to_row * kPanelRowBytes;
#pragma unroll
    for (int i = 0; i < S::unit_keys / 16; ++i) {
      store_matrices(to + ((2 * i + lane_ / 16) ^ to_row % 8) * 16, weights + 4 * i);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float total = last ? quad_sum(total_[r]) : 0.0f;
      if (lane_ % 4 != 0) continue;
      control_.shrink[at.stage][row(r)] = shrink[r];
      if (last) control_.statistics[at.stage][row(r)] = {reference_[r], total};
    }
    publish_to_units();
    barrier_arrive(&control_.weights_full[at.stage]);
  }

  const LatentDecode& a_;
  const uint32_t shared_;
  Control& control_;
  const int group_, warp_, lane_;
  uint32_t rotary_[16];  // the queries' last panel: an operand of four steps
  float scale_;
  float reference_[2], total_[2];
  int end_[2], all_to_;
  int count_ = 0;  // units before the one at hand
};

}  // namespace mainboard::cuda
