// The warpgroup of the latent decode kernel that turns queries and keys into weights.
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
      const int end = s->unit_end;
      int unit = s->unit;
      barrier_wait(&control_.q_full, segments.number() % 2);
      segments.release();
      if (S::sharing && unit == end) release_warp(&control_.q_empty);
      for (; unit < end; ++unit, ++count_) {
        const LatentTurn<S> at(count_);
        Scores scores;
        multiply(scores, at, unit + 1 == end);
        weigh(scores, unit * S::unit_keys, at, unit + 1 == end);
      }
    }
  }

 private:
  static constexpr float kSlack = 8.0f;
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

  // The products of the tile's queries and the unit's keys, panel by panel as they arrive.
  __device__ void multiply(Scores& scores, const LatentTurn<S>& at, bool last) const {
    const uint64_t q = operand_of_rows(without_rank(shared_));
    const uint64_t k =
        operand_of_rows(without_rank(shared_) + S::keys_at + at.stage * S::panels * S::panel_bytes);
    uint64_t* full = control_.full[at.stage];
#pragma unroll
    for (int i = -1; i < S::value_panels; ++i) {
      // The last, then those that the summing warpgroups give back first.
      const int panel = i < 0 ? S::panels - 1 : i / 2 % 2 * 4 + i / 4 * 2 + i % 2;
      barrier_wait(&full[panel], at.parity);
      begin_products();
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        const uint32_t bytes = panel * S::panel_bytes + step * 32;
        if (panel >= S::query_panels) {
          const uint32_t* own = held_ + 4 * (4 * (panel - S::query_panels) + step);
          Product<T, S::unit_keys>::rows(scores, own, advanced(k, bytes), i >= 0 || step > 0);
        } else {
          Product<T, S::unit_keys>::rows(scores, advanced(q, bytes), advanced(k, bytes), 1);
        }
      }
    }
    commit_products();
    wait_for_products<0>(scores);
    release_warp(&control_.scored);
    if (last) release_warp(&control_.q_empty);
  }

  // Turns scores into weights in shared memory, part by part, for the summing warpgroups. The first
  // part is weighed by the old reference while the maxima are found, which are seldom too large.
  __device__ void weigh(Scores& scores, int key, const LatentTurn<S>& at, bool last) {
    constexpr int kPart = kPairs / S::parts;
    see(scores, key);
    Weights weights;
    float sums[2] = {}, shrink[2] = {1.0f, 1.0f};
    exponentiate<0, kPart>(scores, weights, sums);
    if (moves_reference(scores, shrink)) {
      sums[0] = sums[1] = 0.0f;
      exponentiate<0, kPart>(scores, weights, sums);
    }
    barrier_wait(&control_.weights_empty[at.stage], at.parity ^ 1);
    if (lane_ % 4 == 0) {
      control_.shrink[at.stage][row(0)] = shrink[0];
      control_.shrink[at.stage][row(1)] = shrink[1];
    }
    hand_over<0>(weights, at);
    exponentiate<kPart, kPairs>(scores, weights, sums);
#pragma unroll
    for (int r = 0; r < 2; ++r) total_[r] = total_[r] * shrink[r] + sums[r];
    if (last) write_statistics(at.stage);
    hand_over<1>(weights, at);
    barrier_wait(&control_.scored, count_ & 1);  // long since; so that somebody does
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

  // The weights of some pairs of scores, added to `sums`; the sums' layout is the operand's.
  template <int from, int to>
  __device__ void exponentiate(const Scores& scores, Weights& weights, float (&sums)[2]) const {
    const float scale = fabsf(scale_);
    float base[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) base[r] = reference_[r] == -INFINITY ? 0.0f : reference_[r];
#pragma unroll
    for (int i = from; i < to; ++i) {
      const float low = exp2_approx(scores[2 * i] * scale - base[i % 2]);
      const float high = exp2_approx(scores[2 * i + 1] * scale - base[i % 2]);
      sums[i % 2] += low + high;
      weights[i] = pack<T>(low, high);
    }
  }

  // Moves the references of rows whose scores are too large for them; whether any of the warp is.
  __device__ bool moves_reference(const Scores& scores, float (&shrink)[2]) {
    float most[2] = {scores[0], scores[2]};
#pragma unroll
    for (int i = 0; i < 2 * kPairs; ++i) most[i / 2 % 2] = fmaxf(most[i / 2 % 2], scores[i]);
    bool moves = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      most[r] = quad_max(most[r]) * fabsf(scale_);
      moves |= most[r] > reference_[r] + kSlack;
    }
    if (!__any_sync(0xffffffffu, moves)) return false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!(most[r] > reference_[r] + kSlack)) continue;
      shrink[r] = exp2_approx(reference_[r] - most[r]);
      reference_[r] = most[r];
    }
    return true;
  }

  // A summing warpgroup's thread needs the weights of the same thread here: see wgmma.h.
  template <int part>
  __device__ void hand_over(const Weights& weights, const LatentTurn<S>& at) const {
    constexpr int kQuads = kPairs / 4 / S::parts;
#pragma unroll
    for (int i = part * kQuads; i < (part + 1) * kQuads; ++i) {
      store_four(weights_of<S>(shared_, at.stage, i), weights + 4 * i);
    }
    barrier_arrive(&control_.weights_full[at.stage][part]);
  }

  __device__ void write_statistics(int stage) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float total = quad_sum(total_[r]);
      if (lane_ % 4 == 0) control_.statistics[stage][row(r)] = {reference_[r], total};
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
  int count_ = 0;  // units before the one at hand
};

}  // namespace mainboard::cuda
