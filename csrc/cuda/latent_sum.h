// The warpgroups of the latent decode kernel that turn scores into weights, both the same, sum the
// values, half of the columns each, and write results.
//
// Weights are relative to a reference, which follows the maximum of the scores only where that has
// grown by much: what was summed before must then shrink. Every weight stays below 2 ** kSlack,
// which loses no precision, and most units leave the sums alone.
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
      enter(*s);
      walk(s->unit, s->unit_end);
      write(*s);
      if (s->pieces > 1) {
        LatentJoin<S>(a_, control_, threadIdx.x % kGroupThreads + group_ * kGroupThreads)
            .count_in(*s);
      }
      segments.release();
    }
  }

 private:
  static constexpr float kSlack = 8.0f;
  static constexpr int kPairs = S::unit_keys / 4;  // of a thread's weights
  using Scores = float[2 * kPairs];
  using Weights = uint32_t[kPairs];

  __device__ int row(int r) const { return 16 * warp_ + lane_ / 4 + 8 * r; }

  // The group's columns lie in two halves one after another; see wgmma.h.
  __device__ float& sum(int i) {
    return sums_[i / (S::group_columns / 4)][i % (S::group_columns / 4)];
  }

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
      total_[r] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < S::group_columns / 2; ++i) sum(i) = 0.0f;
  }

  __device__ void walk(int unit, int end) {
    for (; unit < end; ++unit, ++count_) {
      const LatentTurn<S> at(count_);
      Weights weights;
      weigh(weights, unit * S::unit_keys);
      clear_tail(at, max(0, keys_ - unit * S::unit_keys));
      multiply(weights, at);
    }
  }

  // Takes a unit's scores and turns them into weights.
  __device__ void weigh(Weights& weights, int key) {
    barrier_wait(&control_.scores_full, count_ & 1);
    Scores scores;
#pragma unroll
    for (int i = 0; i < kPairs / 2; ++i) load_four(scores + 4 * i, scores_of<S>(shared_, i));
    release_warp(&control_.scores_empty);
    see(scores, key);
    move_reference(scores);
    exponentiate(scores, weights);
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

  // The weights of the scores; the layout of sums is the operand's.
  __device__ void exponentiate(const Scores& scores, Weights& weights) {
    const float scale = fabsf(scale_);
    float base[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) base[r] = reference_[r] == -INFINITY ? 0.0f : reference_[r];
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const float low = exp2_approx(scores[2 * i] * scale - base[i % 2]);
      const float high = exp2_approx(scores[2 * i + 1] * scale - base[i % 2]);
      total_[i % 2] += low + high;
      weights[i] = pack<T>(low, high);
    }
  }

  // Moves the references of rows whose scores are too large for them, and shrinks what was summed.
  __device__ void move_reference(const Scores& scores) {
    float most[2] = {scores[0], scores[2]};
#pragma unroll
    for (int i = 0; i < 2 * kPairs; ++i) most[i / 2 % 2] = fmaxf(most[i / 2 % 2], scores[i]);
    bool moves = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      most[r] = quad_max(most[r]) * fabsf(scale_);
      moves |= most[r] > reference_[r] + kSlack;
    }
    if (!__any_sync(0xffffffffu, moves)) return;
    float shrink[2] = {1.0f, 1.0f};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!(most[r] > reference_[r] + kSlack)) continue;
      shrink[r] = exp2_approx(reference_[r] - most[r]);
      reference_[r] = most[r];
      total_[r] *= shrink[r];
    }
#pragma unroll
    for (int i = 0; i < S::group_columns / 2; ++i) sum(i) *= shrink[i / 2 % 2];
  }

  __device__ uint32_t values_at(int stage) const {
    constexpr int kOwnPanels = S::value_panels / S::groups;
    return shared_ + S::keys_at + (stage * S::panels + group_ * kOwnPanels) * S::panel_bytes;
  }

  // Zeros the values past the sequence's end, whose weight is zero: they may be no numbers.
  __device__ void clear_tail(const LatentTurn<S>& at, int from) const {
    if (from >= S::unit_keys) return;
    constexpr int kOwnPanels = S::value_panels / S::groups;
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

  // Adds weights * values, and gives the keys' stage back part by part.
  __device__ void multiply(const Weights& weights, const LatentTurn<S>& at) {
    const uint64_t v = operand_of_columns(values_at(at.stage), S::panel_bytes);
    constexpr int kSteps = S::part_keys / 16;
    hold(sums_[0]);
    hold(sums_[1]);
    begin_products();
#pragma unroll
    for (int step = 0; step < S::unit_keys / 16; ++step) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t bytes = half * 2 * S::panel_bytes + step * 16 * kPanelRowBytes;
        Product<T, S::group_columns / 2>::columns(sums_[half], weights + 4 * step,
                                                  advanced(v, bytes), 1);
      }
      if (step % kSteps == kSteps - 1) commit_products();
    }
    static_assert(S::parts == 2);
    wait_for_products<1>();
    release_warp(&control_.empty[at.stage][0]);
    wait_for_products<0>(sums_[0]);
    hold(sums_[1]);
    release_warp(&control_.empty[at.stage][1]);
  }

  // Writes the rows, or what this piece has of them into the workspace.
  __device__ void write(const LatentSegment& s) {
    const int column = group_ * S::group_columns + lane_ % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      total_[r] = quad_sum(total_[r]);
      const LatentPlace place(a_, s, row(r));
      if (!place.used) continue;
      if (s.pieces == 1) {
        write_row(place, r, column);
      } else {
        const int64_t at = int64_t{s.slot(s.piece)} * a_.slot_rows + row(r);
        float* to = a_.workspace.sums + at * S::dim + column;
#pragma unroll
        for (int i = 0; i < S::group_columns / 8; ++i) {
          __stcg(reinterpret_cast<float2*>(to + 8 * i),
                 make_float2(sum(4 * i + 2 * r), sum(4 * i + 2 * r + 1)));
        }
        if (column == 0) {
          __stcg(a_.workspace.statistics + at, make_float2(reference_[r], total_[r]));
        }
      }
    }
  }

  __device__ void write_row(const LatentPlace& place, int r, int column) {
    const float scale = output_scale(a_, total_[r]);
    T* to =
        static_cast<T*>(a_.out) + place.token * a_.out_token + place.head * a_.out_head + column;
#pragma unroll
    for (int i = 0; i < S::group_columns / 8; ++i) {
      *reinterpret_cast<uint32_t*>(to + 8 * i) =
          pack<T>(sum(4 * i + 2 * r) * scale, sum(4 * i + 2 * r + 1) * scale);
    }
    if (column == 0) write_lse(a_, place, reference_[r], total_[r]);
  }

  const LatentDecode& a_;
  const uint32_t shared_;
  Control& control_;
  const int group_, warp_, lane_;
  float sums_[2][S::group_columns / 4];
  float scale_;
  float reference_[2], total_[2];  // total: a lane's part
  int end_[2], all_to_, keys_;
  int count_ = 0;  // units before the one at hand
};

}  // namespace mainboard::cuda
