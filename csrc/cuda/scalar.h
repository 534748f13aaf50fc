// Element types on the device: pairs to and from float32, and fp8 to float16.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <type_traits>

namespace mainboard::cuda {

using E4M3 = __nv_fp8_e4m3;
using E5M2 = __nv_fp8_e5m2;

template <class T>
inline constexpr bool is_fp8_type = std::is_same_v<T, E4M3> || std::is_same_v<T, E5M2>;

template <class Pair>
__device__ inline uint32_t bits(Pair pair) {
  static_assert(sizeof(Pair) == 4);
  return *reinterpret_cast<uint32_t*>(&pair);
}

// Two numbers as one register of two T, the first in the low half.
template <class T>
__device__ inline uint32_t pack(float low, float high) {
  if constexpr (std::is_same_v<T, __half>) {
    return bits(__floats2half2_rn(low, high));
  } else {
    return bits(__floats2bfloat162_rn(low, high));
  }
}

template <class T>
__device__ inline float2 unpack(uint32_t pair) {
  if constexpr (std::is_same_v<T, __half>) {
    return __half22float2(*reinterpret_cast<__half2*>(&pair));
  } else {
    return __bfloat1622float2(*reinterpret_cast<__nv_bfloat162*>(&pair));
  }
}

// The two fp8 numbers in the low 16 bits as two halves; every fp8 number is a half.
template <class T>
__device__ inline uint32_t halves_of_fp8(uint32_t pair) {
  uint32_t halves;
  if constexpr (std::is_same_v<T, E4M3>) {
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<uint16_t>(pair)));
  } else {
    asm("cvt.rn.f16x2.e5m2x2 %0, %1;" : "=r"(halves) : "h"(static_cast<uint16_t>(pair)));
  }
  return halves;
}

// A pair of T as halves, saturated: what bfloat16 has beyond a half's range is not a score.
template <class T>
__device__ inline uint32_t halves_of(uint32_t pair) {
  if constexpr (std::is_same_v<T, __half>) {
    return pair;
  } else {
    constexpr float kLargest = 65504.0f;
    const float2 x = unpack<T>(pair);
    return pack<__half>(fminf(fmaxf(x.x, -kLargest), kLargest),
                        fminf(fmaxf(x.y, -kLargest), kLargest));
  }
}

}  // namespace mainboard::cuda
