// The warpgroup of the latent decode kernel that turns queries and keys into weights.
//
// Weights are relative to a reference, which follows the maximum of the scores only where that has
// grown by much: what was summed before must then shrink. Every weight stays below kMostSum, which
// loses no precision, and most units leave the sums alone.
#pragma once

#include "csrc/cuda/latent_shape.h"

namespace mainboard::cuda {

template <class S>
class Scorer {
 public:
  using T = typename S::T;
  using Control = typename S::Control;

  __device__ Scorer(const LatentDecode& a, uint32_t shared, Control& control)
      : a_(a),
        shared_(shared),
        control_(control),
        warp_(uniform(threadIdx.x % kGroupThreads / 32)),
        lane_(threadIdx.x % 32) {}

  __device__ void run() {
    SegmentReader<S> segments(control_);
    while (const LatentSegment* s = segments.next()) {
      enter(*s);
      const int end = uniform(s->unit_end);
      int unit = uniform(s->unit);
      barrier_wait(&control_.q_full, segments.number() % 2);
      float2* statistics = control_.statistics[segments.number() % 2];
      segments.release();
      if (S::sharing && unit == end) release_warp(&control_.q_empty);
      for (; unit < end; ++unit, ++count_) {
        Scores scores;
        multiply(scores, unit + 1 == end);
        weigh(scores, unit * S::unit_keys, unit + 1 == end ? statistics : nullptr);
      }
    }
  }

 private:
  static constexpr float kMostSum = 256.0f;        // of a thread's weights of one row
  static constexpr int kPairs = S::unit_keys / 4;  // of a thread's weights
  using Scores = float[2 * kPairs];
  using Weights = uint32_t[kPairs];

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
                      place.head * a_.q_head + S::query_panels * kPanelColumns + lane_ % 4 * 2;
#pragma unroll
      for (int i = 0; i < 8 * S::held_panels; ++i) {  // eight columns each; see wgmma.h
        uint32_t& pair = held_[i / 2 * 4 + i % 2 * 2 + r];
        pair = place.used ? *reinterpret_cast<const uint32_t*>(from + 8 * i) : 0;
      }
    }
  }

  // The products of the tile's queries and the unit's keys, one half of the panels after the other
  // as they arrive: those first that the summing warpgroups give back first.
  __device__ void multiply(Scores& scores, bool last) {
    const uint32_t shared = without_rank(shared_);
#pragma unroll
    for (int half = 0; half < 2; ++half, turn_ = turn_.after(1)) {
      barrier_wait(&control_.full[turn_.slot], turn_.parity);
      if (half == 0) begin_products();
      const uint64_t k = operand_of_rows(shared + S::keys_at + turn_.slot * S::slot_bytes);
#pragma unroll
      for (int panel = 0; panel < S::value_panels; ++panel) {
        if (half_of_panel(panel) != half) continue;
        multiply_panel(scores, panel, advanced(k, slot_panel(panel) * S::panel_bytes));
      }
    }
    barrier_wait(&control_.last_full, count_ & 1);
    multiply_panel(scores, S::value_panels, operand_of_rows(shared + S::last_at));
    commit_products();
    // Both have long been so: the waits cost nothing here.
    barrier_wait(&control_.weights_empty, count_ & 1 ^ 1);
    barrier_wait(&control_.scored, count_ & 1 ^ 1);
    wait_for_products<0>(scores);
    release_warp(&control_.scored);
    release_keys<S>(&control_.last_empty);
    if (last) release_warp(&control_.q_empty);
  }

  __device__ void multiply_panel(Scores& scores, int panel, uint64_t k) const {
    const uint64_t q = operand_of_rows(without_rank(shared_) + panel * S::panel_bytes);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      if (panel >= S::query_panels) {
        const uint32_t* own = held_ + 4 * (4 * (panel - S::query_panels) + step);
        Product<T, S::unit_keys>::rows(scores, own, advanced(k, step * 32), 1);
      } else {
        Product<T, S::unit_keys>::rows(scores, advanced(q, step * 32), advanced(k, step * 32),
                                       panel > 0 || step > 0);
      }
    }
  }

  // Turns scores into weights in shared memory, for the summing warpgroups. They are weighed by the
  // old reference, and again in the seldom case that it was too small: what the weights add up to
  // tells, so that their maximum need not be known.
  __device__ void weigh(Scores& scores, int key, float2* statistics) {
    see(scores, key);
    Weights weights;
    float sums[2], shrink[2] = {1.0f, 1.0f};
    exponentiate(scores, weights, sums);
    const bool moves = is_too_small(0, sums[0]) || is_too_small(1, sums[1]);
    if (__builtin_expect(__any_sync(0xffffffffu, moves), 0)) {
      hold(scores);  // so that nothing of the first time is kept for the second
      move_references(scores, sums, shrink);
      exponentiate(scores, weights, sums);
    }
    if (lane_ % 4 == 0) control_.shrink[8 * warp_ + lane_ / 4] = {shrink[0], shrink[1]};
#pragma unroll
    for (int r = 0; r < 2; ++r) total_[r] = total_[r] * shrink[r] + sums[r];
    if (statistics != nullptr) write_statistics(statistics);
    hand_over(weights);
  }

  // Scores as if the scale were positive, those of keys that are not seen at minus infinity.
  __device__ void see(Scores& scores, int key) const {
    if (scale_ < 0.0f) {
#pragma unroll
      for (float& x : scores) x = -x;
    }
    if (key + S::unit_keys <= all_to_) return;
#pragma unroll
    for (int i = 0; i < 2 * kPairs; ++i) {
      const int at = key + i / 4 * 8 + lane_ % 4 * 2 + i % 2;
      if (at >= end_[i / 2 % 2]) scores[i] = -INFINITY;
    }
  }

  // The weights, and the thread's part of what they add up to.
  __device__ void exponentiate(const Scores& scores, Weights& weights, float (&sums)[2]) const {
    const float scale = fabsf(scale_);
    float base[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      base[r] = reference_[r] == -INFINITY ? 0.0f : reference_[r];
      sums[r] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const float low = exp2_approx(scores[2 * i] * scale - base[i % 2]);
      const float high = exp2_approx(scores[2 * i + 1] * scale - base[i % 2]);
      sums[i % 2] += low + high;
      weights[i] = pack<T>(low, high);
    }
  }

  __device__ bool is_too_small(int r, float sum) const {
    return sum > kMostSum || reference_[r] == -INFINITY;
  }

  // Moves the references that are too small, and no others: what a row comes to must not depend on
  // its neighbours.
  __device__ void move_references(const Scores& scores, const float (&sums)[2],
                                  float (&shrink)[2]) {
    float most[2] = {scores[0], scores[2]};
#pragma unroll
    for (int i = 0; i < 2 * kPairs; ++i) most[i / 2 % 2] = fmaxf(most[i / 2 % 2], scores[i]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      most[r] = quad_max(most[r]) * fabsf(scale_);
      if (!is_too_small(r, quad_max(sums[r])) || !(most[r] > reference_[r])) continue;
      shrink[r] = exp2_approx(reference_[r] - most[r]);
      reference_[r] = most[r];
    }
  }

  // A summing warpgroup's thread needs the weights of the same thread here: see wgmma.h.
  __device__ void hand_over(const Weights& weights) const {
    const uint32_t to = weights_of<S>(shared_);
#pragma unroll
    for (int i = 0; i < kPairs / 4; ++i) store_four(to + i * kWeightsStep, weights + 4 * i);
    barrier_arrive(&control_.weights_full);
  }

  __device__ void write_statistics(float2* statistics) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float total = quad_sum(total_[r]);
      if (lane_ % 4 == 0) statistics[row(r)] = {reference_[r], total};
    }
  }

  const LatentDecode& a_;
  const uint32_t shared_;
  Control& control_;
  const int warp_, lane_;
  uint32_t held_[16 * S::held_panels];  // operands of the queries' last panels, four steps each
  float scale_;
  float reference_[2], total_[2];
  int end_[2], all_to_;
  LatentTurn<S> turn_;  // of the half at hand
  int count_ = 0;       // units before the one at hand
};

}  // namespace mainboard::cuda
