// What the two warpgroups of the latent decode kernel compute.
//
// Each makes the weights of every other unit, and sums the values of all units for its half of the
// columns, which is as much as it has registers for. While one exponentiates, the other and its own
// product of the unit before keep the matrix units busy.
//
// Weights are relative to a reference, which follows the maximum of the scores only where that has
// grown by much: what was summed before must then shrink. Every weight stays below 2 ** kSlack,
// which loses no precision, and most units leave the sums alone.
#pragma once
#ifndef SAW_MID
#define SAW_MID 9
#endif
#ifndef SAW_EARLY
#define SAW_EARLY 0
#endif

#include "csrc/cuda/latent_join.h"

namespace mainboard::cuda {

template <class S>
class Worker {
 public:
  using T = typename S::T;
  using Control = typename S::Control;

  __device__ Worker(const LatentDecode& a, uint32_t shared, Control& control, int group)
      : a_(a),
        shared_(shared),
        control_(control),
        group_(group),
        warp_(uniform(threadIdx.x % kGroupThreads / 32)),
        lane_(threadIdx.x % 32) {}

  __device__ void run() {
    for (int number = 0;; ++number) {
      barrier_wait(&control_.segment_full[number % 2], number / 2 % 2);
      const LatentSegment& s = control_.segments[number % 2];
      if (s.pieces == 0) return;
      enter(s);
      barrier_wait(&control_.q_full, number % 2);
      walk(s.unit, s.unit_end);
      write(s);
      if (s.pieces > 1) {
        LatentJoin<S>(a_, control_, threadIdx.x % kGroupThreads + group_ * kGroupThreads)
            .count_in(s);
      }
      release_warp(&control_.segment_empty[number % 2]);
    }
  }

 private:
  static constexpr float kSlack = 8.0f;
  using Scores = float[S::unit_keys / 2];
  using Weights = uint32_t[S::unit_keys / 4];

  __device__ int row(int r) const { return 16 * warp_ + lane_ / 4 + 8 * r; }

  __device__ void enter(const LatentSegment& s) {
    scale_ = a_.scale_log2 * (a_.kv_scale ? a_.kv_scale[0] : 1.0f);
    keys_ = s.keys;
    const int before = s.keys - s.queries;
    all_to_ = min(s.keys, before + a_.heads.divide(s.row) + a_.right + 1);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const LatentPlace place(a_, s, row(r));
      end_[r] = min(s.keys, before + place.token - s.first_query + a_.right + 1);
      reference_[r] = -INFINITY;
      total_[r] = others_[r] = 0.0f;
      const T* from = static_cast<const T*>(a_.q) + place.token * a_.q_token +
                      place.head * a_.q_head + S::dim + lane_ % 4 * 2;
#pragma unroll
      for (int i = 0; i < 8; ++i) {  // eight columns each; see wgmma.h
        uint32_t& pair = rotary_[i / 2 * 4 + i % 2 * 2 + r];
        pair = place.used ? *reinterpret_cast<const uint32_t*>(from + 8 * i) : 0;
      }
    }
#pragma unroll
    for (float& x : sums_) x = 0.0f;
  }

  __device__ void walk(const int first, const int end) {
    int unit = first + ((count_ + group_) & 1);  // this group's first
    const int start = count_ - first;
    if (unit >= end) release_warp(&control_.q_empty);
    if (unit == first) {
      const LatentTurn<S> at(start + unit);
      Scores scores;
      Weights weights;
      float shrink[2];
      multiply_keys(scores, at, unit + 2 >= end);
      weigh(scores, unit * S::unit_keys, weights, shrink);
      hand_over(weights, shrink, at, unit + 2 >= end);
      add_own(weights, at, unit);
      unit += 2;
    }
    for (; unit < end; unit += 2) {
      const LatentTurn<S> at(start + unit), before(start + unit - 1);
      Scores scores;
      Weights weights;
      float shrink[2];
#if SAW_MID < 9
      begin_keys(scores, at);
      multiply_panels<0, SAW_MID>(scores, at);
      commit_products();
      begin_others(before, unit - 1, end);
      begin_products();
      multiply_panels<SAW_MID, 8>(scores, at);
      commit_products();
      wait_for_products<1>();
      hold(sums_);
      release_others(before);
      end_keys(scores, at, unit + 2 >= end);
      weigh(scores, unit * S::unit_keys, weights, shrink);
      hand_over(weights, shrink, at, unit + 2 >= end);
#else
      multiply_keys(scores, at, unit + 2 >= end);
      begin_others(before, unit - 1, end);
      weigh(scores, unit * S::unit_keys, weights, shrink);
#if SAW_EARLY
      end_others(before);
#endif
      hand_over(weights, shrink, at, unit + 2 >= end);
#if !SAW_EARLY
      end_others(before);
#endif
#endif
      shrink_sums(shrink);
      add_own(weights, at, unit);
    }
    if (unit == end) {  // the last unit is the other's
      const LatentTurn<S> at(start + end - 1);
      begin_others(at, end - 1, end);
      end_others(at);
    }
    count_ += end - first;
  }

  // The products of the tile's queries and a unit's keys, panel by panel as they arrive.
  __device__ void multiply_keys(Scores& scores, const LatentTurn<S>& at, bool last) const {
    begin_keys(scores, at);
    multiply_panels<0, S::value_panels>(scores, at);
    commit_products();
    end_keys(scores, at, last);
  }
  __device__ uint64_t keys_of(const LatentTurn<S>& at) const {
    return operand_of_rows(shared_ + S::keys_at + at.stage * S::panels * S::panel_bytes);
  }
  __device__ void begin_keys(Scores& scores, const LatentTurn<S>& at) const {
    const uint64_t k = keys_of(at);
    barrier_wait(&control_.full[at.stage][S::rotary], at.parity);
    begin_products();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      Product<T, S::unit_keys>::rows(scores, rotary_ + 4 * step,
                                     advanced(k, S::rotary * S::panel_bytes + step * 32), step > 0);
    }
  }
  template <int from, int to>
  __device__ void multiply_panels(Scores& scores, const LatentTurn<S>& at) const {
    const uint64_t q = operand_of_rows(shared_), k = keys_of(at);
#pragma unroll
    for (int panel = from; panel < to; ++panel) {
      barrier_wait(&control_.full[at.stage][panel], at.parity);
      begin_products();
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        const uint32_t bytes = panel * S::panel_bytes + step * 32;
        Product<T, S::unit_keys>::rows(scores, advanced(q, bytes), advanced(k, bytes), 1);
      }
    }
  }
  __device__ void end_keys(Scores& scores, const LatentTurn<S>& at, bool last) const {
    wait_for_products<0>(scores);
    release_warp(&control_.rotary_empty[at.stage]);
    if (last) release_warp(&control_.q_empty);
  }

  // Turns scores into weights, and moves the reference from that of the unit before.
  __device__ void weigh(Scores& scores, int key, Weights& weights, float (&shrink)[2]) {
    if (scale_ < 0.0f) {
#pragma unroll
      for (float& x : scores) x = -x;
    }
    if (key + S::unit_keys > all_to_) {
#pragma unroll
      for (int i = 0; i < S::unit_keys / 2; ++i) {
        const int at = key + i / 4 * 8 + lane_ % 4 * 2 + i % 2;
        if (at >= end_[i / 2 % 2]) scores[i] = -INFINITY;
      }
    }
    const float scale = fabsf(scale_);
    float most[2] = {scores[0], scores[2]}, base[2];
#pragma unroll
    for (int i = 0; i < S::unit_keys / 2; ++i) most[i / 2 % 2] = fmaxf(most[i / 2 % 2], scores[i]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      most[r] = quad_max(most[r]) * scale;
      const float before = reference_[r];
      if (most[r] > before + kSlack) reference_[r] = most[r];
      shrink[r] = factor(before, reference_[r]);
      total_[r] *= shrink[r];
      others_[r] *= shrink[r];
      base[r] = reference_[r] == -INFINITY ? 0.0f : reference_[r];
    }
#pragma unroll
    for (int i = 0; i < S::unit_keys / 4; ++i) {  // the sums' layout is the operand's
      const float low = exp2_approx(scores[2 * i] * scale - base[i % 2]);
      const float high = exp2_approx(scores[2 * i + 1] * scale - base[i % 2]);
      total_[i % 2] += low + high;
      weights[i] = pack<T>(low, high);
    }
  }
  __device__ static float factor(float from, float to) {
    return from == to ? 1.0f : exp2_approx(from - to);
  }

  // Gives the other group a unit's weights, what they are relative to, and after the group's last
  // unit what they add up to.
  __device__ void hand_over(const Weights& weights, const float (&shrink)[2],
                            const LatentTurn<S>& at, bool last) const {
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
      if (lane_ % 4 == 0) {
        control_.handed[at.stage][row(r)] = {shrink[r], reference_[r], total, 0.0f};
      }
    }
    publish_to_units();
    barrier_arrive(&control_.weights_full[at.stage]);
  }

  // Sends the sums of the other group's unit to the matrix units, when its weights are there.
  __device__ void begin_others(const LatentTurn<S>& at, int unit, int end) {
    barrier_wait(&control_.weights_full[at.stage], at.parity);
    float shrink[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float4 x = control_.handed[at.stage][row(r)];
      shrink[r] = x.x;
      const float moved = factor(reference_[r], x.y);
      total_[r] *= moved;
      others_[r] *= moved;
      reference_[r] = x.y;
      if (unit + 2 >= end) others_[r] = x.z;
    }
    shrink_sums(shrink);
    clear_tail(at, unit);
    const uint64_t w = operand_of_rows(shared_ + S::weights_at + at.stage * S::panel_bytes);
    const uint64_t v = operand_of_columns(values_at(at.stage), S::panel_bytes);
    hold(sums_);
    begin_products();
#pragma unroll
    for (int step = 0; step < S::unit_keys / 16; ++step) {
      Product<T, S::group_columns>::columns(sums_, advanced(w, step * 32),
                                            advanced(v, step * 16 * kPanelRowBytes), 1);
    }
    commit_products();
  }
  __device__ void end_others(const LatentTurn<S>& at) {
    wait_for_products<0>(sums_);
    release_others(at);
  }
  __device__ void release_others(const LatentTurn<S>& at) {
    release_warp(&control_.empty[at.stage][0]);
    release_warp(&control_.empty[at.stage][S::parts - 1]);
    release_warp(&control_.weights_empty[at.stage]);
  }

  // Adds this group's unit, and gives the keys' stage back part by part.
  __device__ void add_own(const Weights& weights, const LatentTurn<S>& at, int unit) {
    clear_tail(at, unit);
    const uint64_t v = operand_of_columns(values_at(at.stage), S::panel_bytes);
    constexpr int kSteps = S::part_keys / 16;
    hold(sums_);
    begin_products();
#pragma unroll
    for (int step = 0; step < S::unit_keys / 16; ++step) {
      Product<T, S::group_columns>::columns(sums_, weights + 4 * step,
                                            advanced(v, step * 16 * kPanelRowBytes), 1);
      if (step % kSteps == kSteps - 1) commit_products();
    }
    wait_for_products<1>();
    release_warp(&control_.empty[at.stage][0]);
    wait_for_products<0>(sums_);
    release_warp(&control_.empty[at.stage][1]);
  }

  __device__ void shrink_sums(const float (&factors)[2]) {
    if (!__any_sync(0xffffffffu, factors[0] != 1.0f || factors[1] != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < S::group_columns / 2; ++i) sums_[i] *= factors[i / 2 % 2];
  }

  __device__ uint32_t values_at(int stage) const {
    constexpr int kOwnPanels = S::value_panels / 2;
    return shared_ + S::keys_at + (stage * S::panels + group_ * kOwnPanels) * S::panel_bytes;
  }

  // Zeros the values past the sequence's end, whose weight is zero: they may be no numbers.
  __device__ void clear_tail(const LatentTurn<S>& at, int unit) const {
    const int from = max(0, keys_ - unit * S::unit_keys);
    if (from >= S::unit_keys) return;
    constexpr int kOwnPanels = S::value_panels / 2;
    const int chunks = (S::unit_keys - from) * (kPanelRowBytes / 16);
#pragma unroll
    for (int panel = 0; panel < kOwnPanels; ++panel) {
      barrier_wait(&control_.full[at.stage][group_ * kOwnPanels + panel], at.parity);
      const uint32_t to = values_at(at.stage) + panel * S::panel_bytes + from * kPanelRowBytes;
      for (int i = threadIdx.x % kGroupThreads; i < chunks; i += kGroupThreads) {
        store_zeros(to + i * 16);
      }
    }
    publish_to_units();
    named_barrier_sync(kTailBarriers + group_, kGroupThreads);
  }

  // Writes the rows, or what this piece has of them into the workspace.
  __device__ void write(const LatentSegment& s) {
    const int column = group_ * S::group_columns + lane_ % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float total = quad_sum(total_[r]) + others_[r];
      const LatentPlace place(a_, s, row(r));
      if (!place.used) continue;
      if (s.pieces == 1) {
        const float scale = output_scale(a_, total);
        T* to = static_cast<T*>(a_.out) + place.token * a_.out_token + place.head * a_.out_head +
                column;
#pragma unroll
        for (int i = 0; i < S::group_columns / 8; ++i) {
          *reinterpret_cast<uint32_t*>(to + 8 * i) =
              pack<T>(sums_[4 * i + 2 * r] * scale, sums_[4 * i + 2 * r + 1] * scale);
        }
        if (column == 0) write_lse(a_, place, reference_[r], total);
      } else {
        const int64_t at = int64_t{s.slot(s.piece)} * a_.slot_rows + row(r);
        float* to = a_.workspace.sums + at * S::dim + column;
#pragma unroll
        for (int i = 0; i < S::group_columns / 8; ++i) {
          __stcg(reinterpret_cast<float2*>(to + 8 * i),
                 make_float2(sums_[4 * i + 2 * r], sums_[4 * i + 2 * r + 1]));
        }
        if (column == 0) __stcg(a_.workspace.statistics + at, make_float2(reference_[r], total));
      }
    }
  }

  const LatentDecode& a_;
  const uint32_t shared_;
  Control& control_;
  const int group_, warp_, lane_;
  float sums_[S::group_columns / 2];
  uint32_t rotary_[16];  // the queries' last panel: an operand of four steps
  float scale_;
  float reference_[2];          // of all units so far
  float total_[2], others_[2];  // of this group's weights, a lane's part; of the other's
  int end_[2], all_to_, keys_;
  int count_ = 0;  // units before the segment at hand
};

}  // namespace mainboard::cuda
