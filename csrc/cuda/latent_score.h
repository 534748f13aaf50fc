// The warpgroup of the latent decode kernel that multiplies queries and keys.
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
      for (; unit < end; ++unit, ++count_) {
        Scores scores;
        multiply(scores, LatentTurn<S>(count_), unit + 1 == end);
        hand_over(scores);
      }
    }
  }

 private:
  using Scores = float[S::unit_keys / 2];

  __device__ void enter(const LatentSegment& s) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const LatentPlace place(a_, s, 16 * warp_ + lane_ / 4 + 8 * r);
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
  __device__ void multiply(Scores& scores, const LatentTurn<S>& at, bool last) const {
    const uint64_t q = operand_of_rows(shared_);
    const uint64_t k =
        operand_of_rows(shared_ + S::keys_at + at.stage * S::panels * S::panel_bytes);
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

  // A summing warpgroup's thread needs the scores of the same thread here: see wgmma.h.
  __device__ void hand_over(const Scores& scores) const {
    barrier_wait(&control_.scores_empty, count_ & 1 ^ 1);
#pragma unroll
    for (int i = 0; i < S::unit_keys / 8; ++i) {
      store_four(scores_of<S>(shared_, i), scores + 4 * i);
    }
    barrier_arrive(&control_.scores_full);
  }

  const LatentDecode& a_;
  const uint32_t shared_;
  Control& control_;
  const int warp_, lane_;
  uint32_t rotary_[16];  // the queries' last panel: an operand of four steps
  int count_ = 0;        // units before the one at hand
};

}  // namespace mainboard::cuda
