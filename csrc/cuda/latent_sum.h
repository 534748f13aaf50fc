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
      walk(s->unit, s->unit_end, s->keys);
      write(*s);
      if (s->pieces > 1) {
        LatentJoin<S>(a_, control_, threadIdx.x % kGroupThreads + group_ * kGroupThreads)
            .count_in(*s);
      }
      segments.release();
    }
  }

 private:
  __device__ int row(int r) const { return 16 * warp_ + lane_ / 4 + 8 * r; }

  // The group's columns lie in two halves one after another; see wgmma.h.
  __device__ float& sum(int i) {
    return sums_[i / (S::group_columns / 4)][i % (S::group_columns / 4)];
  }

  __device__ void walk(int unit, int end, int keys) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      reference_[r] = -INFINITY;
      total_[r] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < S::group_columns / 2; ++i) sum(i) = 0.0f;
    for (; unit < end; ++unit, ++count_) {
      const LatentTurn<S> at(count_);
      barrier_wait(&control_.weights_full[at.stage][0], at.parity);
      shrink(at.stage);
      clear_tail(at, max(0, keys - unit * S::unit_keys));
      multiply(at);
      if (unit + 1 == end) read_statistics(at.stage);
      finish_unit(at.stage);
    }
  }

  __device__ void shrink(int stage) {
    const float factors[2] = {control_.shrink[stage][row(0)], control_.shrink[stage][row(1)]};
    if (!__any_sync(0xffffffffu, factors[0] != 1.0f || factors[1] != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < S::group_columns / 2; ++i) sum(i) *= factors[i / 2 % 2];
  }

  __device__ void read_statistics(int stage) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float2 x = control_.statistics[stage][row(r)];
      reference_[r] = x.x;
      total_[r] = x.y;
    }
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

  // Sends weights * values to the matrix units, part by part as the weights come.
  __device__ void multiply(const LatentTurn<S>& at) {
    const uint64_t v = operand_of_columns(values_at(at.stage), S::panel_bytes);
    constexpr int kSteps = S::part_keys / 16;
    uint32_t weights[S::unit_keys / 16][4];
    hold(sums_[0]);
    hold(sums_[1]);
#pragma unroll
    for (int step = 0; step < S::unit_keys / 16; ++step) {
      if (step % kSteps == 0) {
        if (step > 0) barrier_wait(&control_.weights_full[at.stage][step / kSteps], at.parity);
#pragma unroll
        for (int i = step; i < step + kSteps; ++i) {
          load_four(weights[i], weights_of<S>(shared_, at.stage, i));
        }
        begin_products();
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t bytes = half * 2 * S::panel_bytes + step * 16 * kPanelRowBytes;
        Product<T, S::group_columns / 2>::columns(sums_[half], weights[step], advanced(v, bytes),
                                                  1);
      }
      if (step % kSteps == kSteps - 1) commit_products();
    }
  }
  // Waits for them, and gives the keys' stage back part by part.
  __device__ void finish_unit(int stage) {
    static_assert(S::parts == 2);
    wait_for_products<1>();
    release_warp(&control_.empty[stage][0]);
    wait_for_products<0>(sums_[0]);
    hold(sums_[1]);
    release_warp(&control_.empty[stage][1]);
    release_warp(&control_.weights_empty[stage]);
  }

  // Writes the rows, or what this piece has of them into the workspace.
  __device__ void write(const LatentSegment& s) {
    const int column = group_ * S::group_columns + lane_ % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const LatentPlace place(a_, s, row(r));
      if (!place.used) continue;
      if (s.pieces == 1) {
        write_row(place, r, column);
      } else {
        const int64_t at = int64_t{s.own_slot(s.piece)} * a_.slot_rows + row(r);
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
  float reference_[2], total_[2];
  int count_ = 0;  // units before the one at hand
};

}  // namespace mainboard::cuda
