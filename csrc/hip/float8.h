// 8-bit floats as HIP's headers of every age lack them for some device, and bfloat16: from float32
// to nearest even, saturated, NaN kept. Plain integers, so that the same lines run on the host.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __HIP__
#include <hip/hip_runtime.h>
#define MAINBOARD_BOTH __host__ __device__
#else
#define MAINBOARD_BOTH
#endif

namespace mainboard::hip {

MAINBOARD_BOTH inline uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
MAINBOARD_BOTH inline float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// `limit` is the largest number, as the bits of a float32. The kinds that end in "fnuz" have one
// NaN, where the others have a negative zero.
template <int mantissa, int bias, uint32_t limit, bool fnuz>
struct Float8 {
  uint8_t code;

  Float8() = default;
  MAINBOARD_BOTH explicit Float8(float x) {
    constexpr uint32_t kInfinity = 0x7f800000, kShift = 23 - mantissa;
    constexpr uint32_t kSmallestNormal = uint32_t{128 - bias} << 23;
    // Added to 2^23 of the smallest steps, a number loses all below one step, to nearest even.
    constexpr uint32_t kSteps = uint32_t{151 - bias - mantissa} << 23;
    uint32_t bits = bits_of(x);
    const uint32_t sign = (bits >> 24) & 0x80;
    bits &= 0x7fffffff;
    if (bits > kInfinity) {
      code = fnuz ? 0x80 : static_cast<uint8_t>(0x7f | sign);
      return;
    }
    if (bits > limit) bits = limit;
    uint32_t magnitude;
    if (bits < kSmallestNormal) {
      magnitude = bits_of(float_of(bits) + float_of(kSteps)) - kSteps;
    } else {
      const uint32_t to_even = ((bits >> kShift) & 1) + (uint32_t{1} << (kShift - 1)) - 1;
      magnitude = ((bits + to_even) >> kShift) - (uint32_t{127 - bias} << mantissa);
    }
    code = static_cast<uint8_t>(fnuz && magnitude == 0 ? 0 : magnitude | sign);
  }
};

using E4M3 = Float8<3, 7, 0x43e00000, false>;      // 448
using E5M2 = Float8<2, 15, 0x47600000, false>;     // 57344
using E4M3Fnuz = Float8<3, 8, 0x43700000, true>;   // 240
using E5M2Fnuz = Float8<2, 16, 0x47600000, true>;  // 57344

struct BFloat16 {
  uint16_t bits;
};
MAINBOARD_BOTH inline float to_float32(BFloat16 x) { return float_of(uint32_t{x.bits} << 16); }
MAINBOARD_BOTH inline BFloat16 to_bfloat16(float x) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return {0x7fc0};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

}  // namespace mainboard::hip
