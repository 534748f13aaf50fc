// exp, exp2 and tanh on vectors of float32.
#pragma once

#include "csrc/cpu/vec.h"

namespace mainboard::cpu::MAINBOARD_ISA {

// e^x = 2^n e^r with x = n ln 2 + r and |r| <= ln 2 / 2.
struct Reduced {
  Vec biased;  // a float whose lowest bits are n + 127
  Vec r;
};

// For -88 < x <= 0. Adding 1.5 * 2^23 rounds to an integer and leaves it in the lowest bits. One
// part of ln 2 is enough: its error grows with |x|, where e^x vanishes.
inline Reduced reduce(Vec x) {
  const Vec shift = set1(12582912.0f + 127.0f);
  const Vec biased = fma(x, set1(1.44269504f), shift);
#if defined(MAINBOARD_PLAIN_VECTORS)
  // Without a fused operation the product must be exact: ln 2 in a short part and the rest.
  const Vec less = fma(shift - biased, set1(0.693359375f), x);
  return {biased, fma(shift - biased, set1(-2.12194440e-4f), less)};
#else
  return {biased, fma(shift - biased, set1(0.693147182f), x)};
#endif
}

// (e^r - 1) / r by a Chebyshev fit on that interval; relative error of e^r <= 7e-8 in float32.
inline Vec expm1_over_r(Vec r) {
  Vec p = set1(0.0013933649752289057f);
  p = fma(p, r, set1(0.00836915522813797f));
  p = fma(p, r, set1(0.04166646674275398f));
  p = fma(p, r, set1(0.16666504740715027f));
  p = fma(p, r, set1(0.5f));
  return fma(p, r, set1(1.0f));
}

// e^x for x <= 0; results under 1.7e-38 are zero. NaN stays NaN.
inline Vec exp_nonpositive(Vec x) {
  const Vec floor = set1(-87.0f);
  const Reduced e = reduce(max(floor, x));
  const Vec power = power_of_two(e.biased);
  return select_le(x, floor, zero(), fma(expm1_over_r(e.r), e.r, set1(1.0f)) * power);
}

// tanh through e^(-2|x|) - 1 = 2^n (e^r - 1) + (2^n - 1), which keeps the relative error of small
// x.
inline Vec tanh(Vec x) {
  const Reduced e = reduce(max(set1(-80.0f), abs(x) * set1(-2.0f)));
  const Vec power = power_of_two(e.biased);
  const Vec expm1 = fma(expm1_over_r(e.r) * e.r, power, power - set1(1.0f));
  const Vec magnitude = (zero() - expm1) / (expm1 + set1(2.0f));
  return select_le(zero(), x, magnitude, zero() - magnitude);
}

// For what must be seen whole by the compiler: a call costs more than what it runs.
#define MAINBOARD_INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__)

// A value that stays in a register, where the compiler would load a constant anew in every slice.
MAINBOARD_INLINE Vec held(float x) {
  Vec v = set1(x);
  asm("" : "+v"(v));
  return v;
}

// Keeps an operation where it stands: the compiler would move a sum that is used later behind the
// work that follows, and spill what it is made of.
MAINBOARD_INLINE void pin(Vec& v) { asm volatile("" : "+v"(v)); }

// 2^x with a polynomial of four or five powers, relative error below 2.7e-6 or 1.6e-7; 0 for -inf.
template <int Powers>
struct Exp2 {
  Vec c0, c1, c2, c3, c4, c5;
  MAINBOARD_INLINE Exp2() {
    if constexpr (Powers == 4) {
      c0 = held(0.0135341706f);
      c1 = held(0.0520114638f);
      c2 = held(0.241442755f);
      c3 = held(0.693003833f);
      c4 = held(1.00000262f);
    } else {
      c0 = held(0.00187757693f);
      c1 = held(0.00898934063f);
      c2 = held(0.0558263175f);
      c3 = held(0.240153611f);
      c4 = held(0.693153083f);
      c5 = held(0.99999994f);
    }
  }
  MAINBOARD_INLINE Vec operator()(Vec x) const {
    const Vec r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    Vec p = fma(fma(fma(fma(c0, r, c1), r, c2), r, c3), r, c4);
    if constexpr (Powers == 5) p = fma(p, r, c5);
    return _mm512_scalef_ps(p, x);
  }
};
inline Vec exp2_exact(Vec x) { return Exp2<5>()(x); }

// cap tanh(x) + offset through 1 - 2 / (1 + e^2x); `x` comes times 2 log2 e.
MAINBOARD_INLINE Vec cap_score(const Exp2<5>& exp2, Vec x, Vec cap, Vec offset) {
  const Vec e = exp2(_mm512_min_ps(x, set1(120.0f))) + set1(1.0f);
  const Vec guess = _mm512_rcp14_ps(e);
  const Vec inverse = guess * _mm512_fnmadd_ps(e, guess, set1(2.0f));
  return fma(cap * set1(-2.0f), inverse, cap + offset);
}

// tanh(x) / x as powers of x^2, for |x| below kLowTanhEnd: relative error below 7e-7.
constexpr float kLowTanh[4] = {0.99999946f, -0.3332632f, 0.13190296f, -0.044402227f};
constexpr float kLowTanhEnd = 0.5f;

// A softcap of low scores, with nothing to divide. It remembers whether one was not low.
class LowCap {
 public:
  // `odd` are factors of the powers of a product, which is low unless its square is above `end`.
  MAINBOARD_INLINE LowCap(const float* odd, float end) : end_(set1(end)), most_(zero()) {
    c1_ = set1(odd[0]);
    c3_ = set1(odd[1]);
    c5_ = set1(odd[2]);
    c7_ = set1(odd[3]);
  }
  // Of +inf it makes -inf.
  MAINBOARD_INLINE Vec operator()(Vec x, Vec offset) {
    const Vec square = look(x);
    return fma(x, fma(fma(fma(c7_, square, c5_), square, c3_), square, c1_), offset);
  }
  MAINBOARD_INLINE Vec look(Vec x) {
    const Vec square = x * x;
    most_ = _mm512_max_ps(square, most_);
    pin(most_);
    return square;
  }
  // Of all that it was called with, but for NaN: that is seen in what becomes of it.
  MAINBOARD_INLINE bool met_high() const {
    return _mm512_cmp_ps_mask(most_, end_, _CMP_GT_OQ) != 0;
  }

 private:
  Vec c1_, c3_, c5_, c7_, end_, most_;
};

#else

// 2^x with a polynomial of four or five powers, relative error below 2.7e-6 or 2.4e-7; 0 below
// 2^-126. For x < 128. NaN stays NaN.
template <int Powers>
struct Exp2 {
  Vec operator()(Vec x) const {
    const Vec shift = set1(12582912.0f + 127.0f);
    const Vec limited = max(set1(-127.0f), x);
    const Vec biased = limited + shift;  // rounds to an integer, which is in the lowest bits
    const Vec r = limited - (biased - shift);
    Vec p;
    if constexpr (Powers == 4) {
      p = fma(set1(0.00957010221f), r, set1(0.0559178591f));
      p = fma(fma(p, r, set1(0.240247443f)), r, set1(0.693121791f));
      p = fma(p, r, set1(0.999999285f));
    } else {
      p = fma(set1(0.00132764725f), r, set1(0.00967554096f));
      p = fma(fma(p, r, set1(0.0555071309f)), r, set1(0.240221202f));
      p = fma(fma(p, r, set1(0.693146944f)), r, set1(1.00000012f));
    }
    return p * power_of_two(biased);
  }
};

// cap tanh(x) + offset through 1 - 2 / (1 + e^2x); `x` comes times 2 log2 e.
MAINBOARD_INLINE Vec cap_score(const Exp2<5>& exp2, Vec x, Vec cap, Vec offset) {
  const Vec limited = zero() - max(set1(-120.0f), zero() - x);
  return (cap + offset) - (cap + cap) / (exp2(limited) + set1(1.0f));
}

#endif

}  // namespace mainboard::cpu::MAINBOARD_ISA
