// Number formats as the driver understands them, independent of the kernels' own conversions.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "csrc/common/dtype.h"

using mainboard::DType;
using mainboard::size_of;

struct Format {
  int exponent_bits, mantissa_bits;
  bool finite;  // no infinities; only all ones is NaN
};

inline Format format_of(DType dtype) {
  switch (dtype) {
    case DType::f16:
      return {5, 10, false};
    case DType::bf16:
      return {8, 7, false};
    case DType::e4m3:
      return {4, 3, true};
    case DType::e5m2:
      return {5, 2, false};
    default:
      return {8, 23, false};
  }
}

inline double decode(DType dtype, uint32_t bits) {
  if (dtype == DType::i8) return static_cast<int8_t>(bits);
  const Format f = format_of(dtype);
  const int bias = (1 << (f.exponent_bits - 1)) - 1;
  const uint32_t ones = (1u << f.exponent_bits) - 1, all = (1u << f.mantissa_bits) - 1;
  const uint32_t exponent = bits >> f.mantissa_bits & ones, mantissa = bits & all;
  const double sign = bits >> (f.exponent_bits + f.mantissa_bits) & 1 ? -1.0 : 1.0;
  if (exponent == ones && (!f.finite || mantissa == all)) {
    return mantissa == 0 ? sign * INFINITY : NAN;
  }
  const double fraction = std::ldexp(static_cast<double>(mantissa), -f.mantissa_bits);
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias);
  return sign * std::ldexp(1.0 + fraction, static_cast<int>(exponent) - bias);
}

inline uint32_t bits_at(const char* p, DType dtype) {
  uint32_t bits = 0;
  std::memcpy(&bits, p, size_of(dtype));  // little-endian
  return bits;
}
inline double value_at(const char* p, DType dtype) { return decode(dtype, bits_at(p, dtype)); }

using Random = std::mt19937_64;
inline double uniform(Random& random, double low, double high) {
  return std::uniform_real_distribution<double>(low, high)(random);
}

// A value of either sign around 1: any mantissa, an exponent of a few; some zeros and, in the
// narrow formats, subnormal numbers.
inline void draw(Random& random, DType dtype, char* to) {
  uint32_t bits;
  if (dtype == DType::i8) {
    bits = static_cast<uint32_t>(random() % 256);
  } else {
    const Format f = format_of(dtype);
    const int bias = (1 << (f.exponent_bits - 1)) - 1;
    const uint32_t sign = random() & 1, mantissa = random() & ((1u << f.mantissa_bits) - 1);
    int exponent = bias - static_cast<int>(random() % 4);
    if (random() % 16 == 0) exponent = 0;
    bits = (sign << f.exponent_bits | exponent) << f.mantissa_bits | mantissa;
  }
  std::memcpy(to, &bits, size_of(dtype));
}

inline void put_nan(DType dtype, char* to) {
  const uint32_t bits = dtype == DType::i8 ? 0x7f : 0x7fffffffu >> (32 - 8 * size_of(dtype));
  std::memcpy(to, &bits, size_of(dtype));
}
