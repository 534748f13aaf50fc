// exp and tanh on vectors of float32.
#pragma once

#include "csrc/cpu/vec.h"

namespace mainboard::cpu::MAINBOARD_ISA {

// e^x - 1 = 2^n (e^r - 1) + (2^n - 1) with x = n ln 2 + r and |r| <= ln 2 / 2.
struct Reduced {
  Vec power;  // n
  Vec expm1;  // e^r - 1
};

inline Reduced reduce(Vec x) {
  const Vec n = round(x * set1(1.44269504f));
  Vec r = fma(n, set1(-0.693145752f), x);  // ln 2 in two parts; the first has few bits
  r = fma(n, set1(-1.42860677e-06f), r);
  // Chebyshev fit of (e^r - 1) / r on that interval; relative error of e^r <= 7e-8 in float32.
  Vec p = set1(0.0013933649752289057f);
  p = fma(p, r, set1(0.00836915522813797f));
  p = fma(p, r, set1(0.04166646674275398f));
  p = fma(p, r, set1(0.16666504740715027f));
  p = fma(p, r, set1(0.5f));
  p = fma(p, r, set1(1.0f));
  return {n, p * r};
}

// e^x for x <= 0; results under 1.7e-38 are zero. NaN stays NaN.
inline Vec exp_nonpositive(Vec x) {
  const Vec floor = set1(-87.0f);
  const Reduced e = reduce(max(floor, x));
  return select_le(x, floor, zero(), scale_by_power_of_two(e.expm1 + set1(1.0f), e.power));
}

// tanh through e^(-2|x|) - 1, which keeps the relative error of small x.
inline Vec tanh(Vec x) {
  const Vec y = max(set1(-80.0f), abs(x) * set1(-2.0f));
  const Reduced e = reduce(y);
  const Vec power = scale_by_power_of_two(set1(1.0f), e.power);
  const Vec expm1 = fma(e.expm1, power, power - set1(1.0f));
  const Vec magnitude = (zero() - expm1) / (expm1 + set1(2.0f));
  return select_le(zero(), x, magnitude, zero() - magnitude);
}

}  // namespace mainboard::cpu::MAINBOARD_ISA
