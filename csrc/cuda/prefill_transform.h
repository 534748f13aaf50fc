// What scores are turned into before they are weights: scaled, capped, or less by ALiBi's distance.
//
// Most blocks are done in the pass that makes weights, by few instructions a score: a cap is a
// polynomial where scores are well below it, and a distance needs no absolute value where all keys
// are before all rows. Other blocks are transformed in place, by what is right everywhere.
#pragma once

#include "csrc/cuda/prefill_softmax.h"

namespace mainboard::cuda {

// The terms of a row that all keys are before.
struct Sloped {
  float scale, slope, first;  // first: what the distance and the base take from the first column
  __device__ float operator()(float x, int i) const {
    return fmaf(x, scale, fmaf(slope, static_cast<float>(column_of(i)), first));
  }
};

// Terms of capped scores, whose squares' largest is in `most`: squares compare as their bits do,
// for which there is an instruction that takes three.
template <bool scaled_keys>
struct Capped {
  const Prefill& a;
  float key_scale, base;
  int& most;
  __device__ float operator()(float x, int) const {
    if constexpr (scaled_keys) x *= key_scale;
    const float u = x * x;
    most = max(most, __float_as_int(u));
    const float p = fmaf(fmaf(fmaf(a.cap[3], u, a.cap[2]), u, a.cap[1]), u, a.cap[0]);
    return fmaf(x, p, -base);
  }
};

// Terms of capped scores of any size.
struct Tanh {
  float unit, cap, base;  // unit: from a score to twice the argument of its tanh, in base-2 units
  __device__ float operator()(float x, int) const {
    return fmaf(-2.0f * cap, reciprocal_approx(exp2_approx(x * unit) + 1.0f), cap - base);
  }
};

// What is done to the scores of a tile. Without `any` they are only scaled, by what is positive.
template <bool any, bool scaled_keys>
struct Transform {
  float scale;  // to base-2 units
  __device__ Transform(const Prefill& a, const Tile&, int, int, float) : scale(a.scale * kLog2E) {}
};

template <bool scaled_keys>
class Transform<true, scaled_keys> {
 public:
  // For the rows `row` + `lane` / 4 and 8 more, of 16 that the warp has.
  __device__ Transform(const Prefill& a, const Tile& t, int row, int lane, float key_scale)
      : a_(a),
        key_scale_(key_scale),
        scale_(a.scale * key_scale * kLog2E),
        how_(key_scale > 0.0f ? a.scores : Scores::other) {
    if (a.alibi_slopes == nullptr) return;
    right_ = t.right;
    const int shift = t.keys - t.queries;
    first_ = RowPlace(a, t, row).token + shift;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const RowPlace place(a, t, row + lane / 4 + 8 * r);
      slope_[r] = a.alibi_slopes[min(place.head, a.heads - 1)] * kLog2E;
      place_[r] = place.token + shift - 2 * (lane % 4);
    }
  }

  // Whether what a mask takes away, as -inf, stays so.
  __device__ bool keeps_infinity() const {
    return how_ == Scores::scaled || how_ == Scores::sloped;
  }

  // Weights of the scores of `used` keys from `key` on, if the base that there is allows it, and if
  // this way is right for all of them. Scores stay.
  template <int used, class T, int n, int m>
  __device__ bool try_weigh(Softmax<T>& softmax, const float (&s)[n], uint32_t (&weights)[m],
                            int key, bool all_seen) const {
    if (how_ == Scores::scaled) {
      return softmax.template try_weigh<used>(
          s, weights, [&](int, float base) { return Scaled{scale_, base}; }, [] { return true; });
    }
    if (how_ == Scores::sloped) {
      // Towards a row from behind it scores grow so much that its base would be outgrown.
      if (key + used > first_ + 1 && right_ > 0) return false;
      return softmax.template try_weigh<used>(
          s, weights,
          [&](int r, float base) {
            const float distance = static_cast<float>(place_[r] - key);
            return Sloped{scale_, slope_[r], fmaf(-slope_[r], distance, -base)};
          },
          [] { return true; });
    }
    if (how_ == Scores::other || !all_seen) return false;
    if (!beyond_) {
      int most = 0;
      const bool fits = softmax.template try_weigh<used>(
          s, weights,
          [&](int, float base) { return Capped<scaled_keys>{a_, key_scale_, base, most}; },
          [&] { return in_reach(most); });
      if (fits || all_in_reach(most)) return fits;
    }
    const float cap = a_.softcap * kLog2E, unit = 2.0f * scale_ / a_.softcap;
    return softmax.template try_weigh<used>(
        s, weights, [&](int, float base) { return Tanh{unit, cap, base}; }, [] { return true; });
  }

  // Transforms scores in place, to base-2 units.
  template <int used, int n>
  __device__ void apply(float (&s)[n], int key) const {
    if constexpr (scaled_keys) {
#pragma unroll
      for (int i = 0; i < used / 2; ++i) s[i] *= key_scale_;
    }
    if (how_ == Scores::capped && all_in_reach(largest_square<used>(s))) {
      int most = 0;
      const Capped<false> cap{a_, 1.0f, 0.0f, most};
#pragma unroll
      for (int i = 0; i < used / 2; ++i) s[i] = cap(s[i], i);
    } else if (a_.softcap > 0.0f) {
      const float cap = a_.softcap * kLog2E, unit = a_.scale / a_.softcap;
#pragma unroll
      for (int i = 0; i < used / 2; ++i) s[i] = cap * tanh_of(s[i] * unit);
    } else {
#pragma unroll
      for (int i = 0; i < used / 2; ++i) s[i] *= a_.scale * kLog2E;
    }
    if (a_.alibi_slopes == nullptr) return;
    const float distance[2] = {static_cast<float>(place_[0] - key),
                               static_cast<float>(place_[1] - key)};
#pragma unroll
    for (int i = 0; i < used / 2; ++i) {
      const int r = i / 2 % 2;
      s[i] -= slope_[r] * fabsf(distance[r] - static_cast<float>(column_of(i)));
    }
  }

 private:
  template <int used, int n>
  __device__ static int largest_square(const float (&s)[n]) {
    int most = 0;
#pragma unroll
    for (int i = 0; i < used / 2; ++i) most = max(most, __float_as_int(s[i] * s[i]));
    return most;
  }
  __device__ bool in_reach(int most) const { return __int_as_float(most) <= a_.cap_reach; }
  // Whether no lane has a larger one. If one has, later blocks are not tried with polynomials.
  __device__ bool all_in_reach(int most) const {
    const bool all = __all_sync(0xffffffffu, in_reach(most));
    if (!all) beyond_ = true;
    return all;
  }

  const Prefill& a_;
  float key_scale_, scale_;
  Scores how_;
  mutable bool beyond_ = false;  // that scores of this tile were too large for `Capped`
  int right_ = 0;                // of the window
  int first_ = 0;                // the place among the keys of the warp's first row
  float slope_[2];
  int place_[2];  // of this thread's rows, before its first column
};

}  // namespace mainboard::cuda
