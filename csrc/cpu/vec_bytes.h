// Rounding a vector of float32 to elements of one byte. Included by vec.h.
//
// Written with the compiler's own vectors, so once for every instruction set.
#pragma once

namespace mainboard::cpu::MAINBOARD_ISA {

typedef int32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
typedef int8_t SignedBytes __attribute__((vector_size(kLanes)));

inline Words words_of(Vec x) { return (Words)x; }
inline Vec vec_of(Words x) { return (Vec)x; }
inline Words words(int32_t x) { return x - Words{}; }

// Saturating, to the nearest, ties to even; NaN becomes 0.
inline void store(Int8* p, Vec x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: what is added to it loses its fraction
  const Vec low = select_le(set1(-128.0f), x, x, set1(-128.0f));
  const Vec clipped = select_le(x, set1(127.0f), low, set1(127.0f));
  const Words rounded = words_of(clipped + set1(kRound)) - words_of(set1(kRound));
  const Words number = words_of(x) & words(0x7fffffff);
  const SignedBytes bytes =
      __builtin_convertvector(number > words(0x7f800000) ? words(0) : rounded, SignedBytes);
  std::memcpy(p, &bytes, sizeof bytes);
}

// Saturating, to the nearest, ties to even; NaN stays NaN.
template <class Fp8>
inline void store_float8(Fp8* p, Vec x) {
  constexpr int kShift = 23 - Fp8::kMantissa, kBias = Fp8::kBias;
  const Words sign = (words_of(x) >> 24) & words(0x80), raw = words_of(x) & words(0x7fffffff);
  const Words most = words_of(set1(Fp8::kMax));
  const Words clipped = raw < most ? raw : most;
  // A carry out of the mantissa walks into the exponent by itself.
  const Words odd = (clipped >> kShift) & words(1);
  const Words normal = ((clipped + odd + words((1 << (kShift - 1)) - 1)) >> kShift) -
                       words((127 - kBias) << Fp8::kMantissa);
  // Below the least normal number: added to this, its units are the last place.
  const Vec unit = vec_of(words((127 + 24 - kBias - Fp8::kMantissa) << 23));
  const Words small = words_of(vec_of(clipped) + unit) - words_of(unit);
  const Words magnitude = clipped < words((128 - kBias) << 23) ? small : normal;
  const Bytes bytes =
      __builtin_convertvector(sign | (raw > words(0x7f800000) ? words(0x7f) : magnitude), Bytes);
  std::memcpy(p, &bytes, sizeof bytes);
}
inline void store(Float8E4M3* p, Vec x) { store_float8(p, x); }
inline void store(Float8E5M2* p, Vec x) { store_float8(p, x); }

}  // namespace mainboard::cpu::MAINBOARD_ISA
