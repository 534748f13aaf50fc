// Products of operands whose elements are pairs of bfloat16, which hold a float16 exactly: 8 bits
// of its significand in the higher one, the other 3 in the lower.
//
// All four products of parts are needed: the error of a sum is not relative to the sum, and lower
// times lower can be 2^-15 of what is summed.
#pragma once

#include <type_traits>

#include "csrc/cpu/amx_soften.h"

#if defined(__AMX_BF16__)

namespace mainboard::cpu::MAINBOARD_ISA {

constexpr int kPanelStride = kTilePanel * sizeof(float);

// Slices of other work, which stand between products; each is of the queries in one half.
using LowHalf = std::integral_constant<int, 0>;
using HighHalf = std::integral_constant<int, 1>;
struct NoSlice {
  template <class Half>
  MAINBOARD_INLINE void operator()(Half) const {}
};

// Whether a kind of slices wants only two places in each `multiply_parts`, not one a product.
template <class Slice>
constexpr bool kFewSlices = false;

// Two tiles of the right operand, `next` words apart, and their lower parts `lower` words behind.
struct RightTiles {
  const uint32_t* tile;
  int next, lower;
};

// Adds a tile of the left operand times both tiles of the right one to 0 and 1.
template <class Slice>
MAINBOARD_INLINE void multiply_parts(const uint32_t* left, int left_lower, const RightTiles& right,
                                     Slice&& slice) {
  auto after = [&](auto number) __attribute__((always_inline)) {
    constexpr int kNumber = decltype(number)::value;
    constexpr int kEach = kFewSlices<std::decay_t<Slice>> ? 4 : 1;
    if constexpr (kNumber % kEach == 0) slice(std::integral_constant<int, kNumber / kEach % 2>());
  };
#define MAINBOARD_MULTIPLY_BOTH(number, lower)                   \
  _tile_loadd(3, right.tile + (lower), kTileBytes);              \
  _tile_dpbf16ps(0, 2, 3);                                       \
  after(std::integral_constant<int, number>());                  \
  _tile_loadd(3, right.tile + right.next + (lower), kTileBytes); \
  _tile_dpbf16ps(1, 2, 3);                                       \
  after(std::integral_constant<int, (number) + 1>())
  _tile_stream_loadd(2, left + left_lower, kTileBytes);
  MAINBOARD_MULTIPLY_BOTH(0, right.lower);
  MAINBOARD_MULTIPLY_BOTH(2, 0);
  _tile_stream_loadd(2, left, kTileBytes);
  MAINBOARD_MULTIPLY_BOTH(4, 0);
  MAINBOARD_MULTIPLY_BOTH(6, right.lower);
#undef MAINBOARD_MULTIPLY_BOTH
}

}  // namespace mainboard::cpu::MAINBOARD_ISA

#endif  // __AMX_BF16__
