// The narrow number formats, each with its exact conversion to and from float32.
//
// Compiled per instruction set as well: everything here is `static` or a template of the including
// unit's own, so that no AVX-512 body is ever picked for an older processor by the linker.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace mainboard::cpu::MAINBOARD_ISA {

inline float float_of_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline uint32_t bits_of_float(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

struct BFloat16 {
  uint16_t bits;
  float to_float() const { return float_of_bits(uint32_t{bits} << 16); }
  static BFloat16 from_float(float x) {
    const uint32_t raw = bits_of_float(x);
    if (x != x) return {0x7fc0};
    return {static_cast<uint16_t>((raw + 0x7fff + ((raw >> 16) & 1)) >> 16)};
  }
};

// A small binary float with E exponent and M mantissa bits. `Finite` formats spend the top
// exponent on numbers and keep only the all-ones mantissa for NaN (OCP's e4m3fn).
template <int E, int M, bool Finite>
struct SmallFloat {
  static constexpr int kBias = (1 << (E - 1)) - 1, kMantissaBits = M;
  static constexpr uint32_t kExponentMask = (1u << E) - 1;
  static constexpr uint32_t kMantissaMask = (1u << M) - 1;

  static float decode(uint32_t bits) {
    const uint32_t exponent = (bits >> M) & kExponentMask;
    const uint32_t mantissa = bits & kMantissaMask;
    const float sign = (bits >> (E + M)) & 1 ? -1.0f : 1.0f;
    const bool top = exponent == kExponentMask;
    if (top && (Finite ? mantissa == kMantissaMask : mantissa != 0)) return NAN;
    if (top && !Finite) return sign * INFINITY;
    if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), 1 - kBias - M);
    return sign * std::ldexp(1.0f + std::ldexp(static_cast<float>(mantissa), -M),
                             static_cast<int>(exponent) - kBias);
  }

  // The same as the bits of a bfloat16, which holds every number of a byte.
  static constexpr uint16_t bfloat16(uint32_t bits) {
    static_assert(E + M < 8 && M <= 7, "its exponents and mantissas fit");
    const uint32_t exponent = (bits >> M) & kExponentMask;
    uint32_t mantissa = bits & kMantissaMask;
    const uint32_t sign = ((bits >> (E + M)) & 1) << 15;
    const bool top = exponent == kExponentMask;
    if (top && (Finite ? mantissa == kMantissaMask : mantissa != 0)) return 0x7fc0;
    if (top && !Finite) return static_cast<uint16_t>(sign | 0x7f80);
    if (exponent == 0 && mantissa == 0) return static_cast<uint16_t>(sign);
    uint32_t wide = (exponent == 0 ? 1 : exponent) + 127 - kBias;
    if (exponent == 0) {
      for (; mantissa <= kMantissaMask; --wide) mantissa <<= 1;
      mantissa &= kMantissaMask;
    }
    return static_cast<uint16_t>(sign | (wide << 7) | (mantissa << (7 - M)));
  }

  // Nearest, ties to even; overflow goes to infinity, or to NaN where there is none.
  static uint32_t encode(float x) {
    const uint32_t raw = bits_of_float(x);
    const uint32_t sign = (raw >> 31) << (E + M);
    constexpr uint32_t kNan = (kExponentMask << M) | kMantissaMask;
    constexpr uint32_t kOverflow = Finite ? kNan : kExponentMask << M;
    if (x != x) return sign | kNan;
    if (std::fabs(x) == INFINITY) return sign | kOverflow;
    int exponent = static_cast<int>((raw >> 23) & 0xff) - 127;
    if (exponent < 1 - kBias) exponent = 1 - kBias;  // subnormal: one fixed quantum
    // |x| in units of the last place; exact in float32, so nearbyint rounds correctly.
    const float units = std::nearbyint(std::ldexp(std::fabs(x), M - exponent));
    uint32_t magnitude = static_cast<uint32_t>(units);
    // A carry out of the mantissa walks into the exponent by itself.
    magnitude += static_cast<uint32_t>(exponent + kBias - 1) << M;
    return sign | (magnitude >= kOverflow ? kOverflow : magnitude);
  }
};

struct Float16 {
  using Format = SmallFloat<5, 10, false>;
  uint16_t bits;
  float to_float() const { return Format::decode(bits); }
  static Float16 from_float(float x) { return {static_cast<uint16_t>(Format::encode(x))}; }
};

template <class Derived, class Fmt>
struct Float8 {
  using Format = Fmt;
  uint8_t bits;
  struct Table {
    float values[256];
    Table() {
      for (uint32_t i = 0; i < 256; ++i) values[i] = Fmt::decode(i);
    }
  };
  static const float* table() {
    static const Table all;
    return all.values;
  }
  float to_float() const { return table()[bits]; }
  static constexpr int kBias = Fmt::kBias, kMantissa = Fmt::kMantissaBits;
};

struct Float8E4M3 : Float8<Float8E4M3, SmallFloat<4, 3, true>> {
  static constexpr float kMax = 448.0f;
};
struct Float8E5M2 : Float8<Float8E5M2, SmallFloat<5, 2, false>> {
  static constexpr float kMax = 57344.0f;
};

struct Int8 {
  // As SmallFloat's, of 0 to 127.
  struct Format {
    static constexpr uint16_t bfloat16(uint32_t value) {
      uint32_t exponent = 127 + 7;
      if (value == 0) return 0;
      for (; value < 128; --exponent) value <<= 1;
      return static_cast<uint16_t>((exponent << 7) | (value & 0x7f));
    }
  };
  int8_t value;
  float to_float() const { return value; }
};

}  // namespace mainboard::cpu::MAINBOARD_ISA
