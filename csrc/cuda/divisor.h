// Division without a division.
#pragma once

#include <cstdint>

namespace mainboard::cuda {

// Division by a number that is known before the launch: for n below 2^31.
struct Divisor {
  uint32_t value = 1, multiplier = 0, shift = 0;

  Divisor() = default;
  explicit Divisor(uint32_t d) : value(d) {
    while ((uint64_t{1} << shift) < d) ++shift;
    multiplier =
        static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift) - d)) / d + 1);
  }
#if defined(__CUDACC__) || defined(__HIP__)
  __device__ int divide(int n) const {
    const uint32_t u = static_cast<uint32_t>(n);
#ifdef __HIP__
    const uint32_t high = static_cast<uint32_t>(uint64_t{u} * multiplier >> 32);
#else
    const uint32_t high = __umulhi(u, multiplier);
#endif
    return static_cast<int>((high + u) >> shift);
  }
#endif
};

}  // namespace mainboard::cuda
