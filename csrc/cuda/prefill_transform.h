// What scores are turned into before they are weights: scaled, capped, or less by ALiBi's distance.
//
// Most blocks are done in the pass that makes weights, by few instructions a score: a cap is a
// polynomial where scores are well below it, and a distance needs no absolute value where all keys
// are on one side of all rows. Other blocks are transformed in place, by what is right everywhere.
#pragma once

#include "csrc/cuda/prefill_softmax.h"

namespace mainboard::cuda {

// How far from zero `Capped` is right.
inline constexpr float kCappedReach = 0.8f;

// The terms of a row that all keys are before.
struct Sloped {
  float scale, slope, first;  // first: what the distance and the base take from the first column
  __device__ float operator()(float x, int i) const {
    return fmaf(x, scale, fmaf(slope, static_cast<float>(column_of(i)), first));
  }
};

// Terms of capped scores, as an odd polynomial of the score. Its last factor is positive, which
// keeps -inf what it is.
struct Capped {
  const float (&factors)[5];
  float base;
  float& most;
  __device__ float operator()(float x, int) const {
    most = fmaxf(most, fabsf(x));
    const float u = x * x;
    float p = factors[4];
#pragma unroll
    for (int k = 3; k >= 0; --k) p = fmaf(p, u, factors[k]);
    return fmaf(x, p, -base);
  }
};

// What is done to the scores of a tile. Without `any` they are only scaled, by what is positive.
template <bool any>
struct Transform {
  float scale;  // to base-2 units
  __device__ Transform(const Prefill&, const Tile&, int, int, float scale_)
      : scale(scale_ * kLog2E) {}
};

template <>
class Transform<true> {
 public:
  // For the rows `row` + `lane` / 4 and 8 more, of 16 that the warp has.
  __device__ Transform(const Prefill& a, const Tile& t, int row, int lane, float scale)
      : a_(a), how_(scale > 0.0f ? a.scores : Scores::other), scale_(scale * kLog2E) {
    if (a.softcap > 0.0f) cap_by_polynomial(scale / a.softcap);
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

  // Whether `try_weigh` may take scores as they are, before any is taken away by a mask.
  template <int used, int n>
  __device__ bool in_reach(const float (&s)[n]) const {
    if (how_ != Scores::capped) return true;
    float most = 0.0f;
#pragma unroll
    for (int i = 0; i < used / 2; ++i) most = fmaxf(most, fabsf(s[i]));
    return __all_sync(0xffffffffu, most <= reach_);
  }

  // Weights of the scores of `used` keys from `key` on, if the base that there is allows it. Scores
  // stay. With `checked` they are known to be in reach.
  template <int used, class T, int n, int m>
  __device__ bool try_weigh(Softmax<T>& softmax, const float (&s)[n], uint32_t (&weights)[m],
                            int key, bool checked) const {
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
    if (how_ == Scores::other) return false;
    float most = 0.0f;
    return softmax.template try_weigh<used>(
        s, weights, [&](int, float base) { return Capped{factors_, base, most}; },
        [&] { return checked || most <= reach_; });
  }

  // Transforms scores in place, to base-2 units; with `checked` they are in reach, but for -inf.
  template <int used, int n>
  __device__ void apply(float (&s)[n], int key, bool checked) const {
    if (how_ == Scores::capped && (checked || in_reach<used>(s))) {
      float most = 0.0f;
      const Capped cap{factors_, 0.0f, most};
#pragma unroll
      for (int i = 0; i < used / 2; ++i) s[i] = cap(s[i], i);
    } else if (a_.softcap > 0.0f) {
      const float cap = a_.softcap * kLog2E, unit = kCappedReach / reach_;
#pragma unroll
      for (int i = 0; i < used / 2; ++i) s[i] = cap * tanh_of(s[i] * unit);
    } else {
#pragma unroll
      for (int i = 0; i < used / 2; ++i) s[i] *= scale_;
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
  // tanh(x) within 4e-7 for |x| up to kCappedReach, by the polynomial of least maximum error (found
  // by Lawson's algorithm), of x = unit * score and times the cap. A unit whose powers are too
  // small for a float is done the other way.
  __device__ void cap_by_polynomial(float unit) {
    const float cap = a_.softcap * kLog2E, square = unit * unit;
    reach_ = kCappedReach / unit;
    if (unit < 1e-4f && how_ == Scores::capped) how_ = Scores::other;
    float power = cap * unit;
    factors_[0] = 0.999995135f * power;
    factors_[1] = -0.333174266f * (power *= square);
    factors_[2] = 0.131862193f * (power *= square);
    factors_[3] = -0.0482613073f * (power *= square);
    factors_[4] = 0.0114646489f * (power *= square);
  }

  const Prefill& a_;
  Scores how_;
  float scale_, reach_ = 0.0f;  // reach_: the largest score that the factors are right for
  float factors_[5];
  int right_, first_ = 0;  // of the window; the place among the keys of the warp's first row
  float slope_[2];
  int place_[2];  // of this thread's rows, before its first column
};

}  // namespace mainboard::cuda
