// Products of operands whose elements are pairs of bfloat16, which hold a float16 exactly: 8 bits
// of its significand in the higher one, the other 3 in the lower.
//
// A score needs all four products of parts, since its error is not relative to it; of an output,
// lower times lower is below what is kept. Each product takes over one operand from the one before
// it, so that sixteen products of tiles load ten of them, and twelve load eight.
#pragma once

#include <type_traits>

#include "csrc/cpu/amx_tiles.h"

#if defined(__AMX_BF16__)

namespace mainboard::cpu::MAINBOARD_ISA {

// Slices of other work, which stand between products; each is of the queries in one half.
using LowHalf = std::integral_constant<int, 0>;
using HighHalf = std::integral_constant<int, 1>;
struct NoSlice {
  template <class Half>
  MAINBOARD_INLINE void operator()(Half) const {}
};

// Whether a kind of slices wants only four places in each `multiply_pairs`, not one a product.
template <class Slice>
constexpr bool kFewSlices = false;

// Two tiles of an operand, `next` words apart, and their lower parts `lower` words behind them.
struct PairTiles {
  const uint32_t* tile;
  int next, lower;
};

// All products of parts, or all but lower times lower. The left operand's two tiles are 4 and 5,
// the right one's 6 and 7.
template <bool kAll, class Slice>
MAINBOARD_INLINE void multiply_pairs(const PairTiles& left, const PairTiles& right, Slice&& slice) {
  auto after = [&](auto number) __attribute__((always_inline)) {
    constexpr int kNumber = decltype(number)::value;
    constexpr int kEach = !kFewSlices<std::decay_t<Slice>> ? 1 : kAll ? 4 : 3;
    if constexpr (kNumber % kEach == 0) slice(std::integral_constant<int, kNumber / kEach % 2>());
  };
#define MAINBOARD_PAIRS_MULTIPLY(number, sum, l, r) \
  _tile_dpbf16ps(sum, l, r);                        \
  after(std::integral_constant<int, number>())
  const uint32_t *l = left.tile, *r = right.tile;
  const uint32_t *l_next = l + left.next, *r_next = r + right.next;
  constexpr int kDone = kAll ? 4 : 0;
  if constexpr (kAll) {
    _tile_loadd(6, r + right.lower, kTileBytes);
    _tile_stream_loadd(4, l + left.lower, kTileBytes);
    MAINBOARD_PAIRS_MULTIPLY(0, 0, 4, 6);
    _tile_loadd(7, r_next + right.lower, kTileBytes);
    MAINBOARD_PAIRS_MULTIPLY(1, 1, 4, 7);
    _tile_stream_loadd(5, l_next + left.lower, kTileBytes);
    MAINBOARD_PAIRS_MULTIPLY(2, 2, 5, 6);
    MAINBOARD_PAIRS_MULTIPLY(3, 3, 5, 7);
  } else {
    _tile_stream_loadd(4, l + left.lower, kTileBytes);
    _tile_stream_loadd(5, l_next + left.lower, kTileBytes);
  }
  _tile_loadd(6, r, kTileBytes);
  MAINBOARD_PAIRS_MULTIPLY(kDone, 0, 4, 6);
  _tile_loadd(7, r_next, kTileBytes);
  MAINBOARD_PAIRS_MULTIPLY(kDone + 1, 1, 4, 7);
  MAINBOARD_PAIRS_MULTIPLY(kDone + 2, 2, 5, 6);
  MAINBOARD_PAIRS_MULTIPLY(kDone + 3, 3, 5, 7);
  _tile_stream_loadd(4, l, kTileBytes);
  MAINBOARD_PAIRS_MULTIPLY(kDone + 4, 0, 4, 6);
  MAINBOARD_PAIRS_MULTIPLY(kDone + 5, 1, 4, 7);
  _tile_stream_loadd(5, l_next, kTileBytes);
  MAINBOARD_PAIRS_MULTIPLY(kDone + 6, 2, 5, 6);
  MAINBOARD_PAIRS_MULTIPLY(kDone + 7, 3, 5, 7);
  _tile_loadd(6, r + right.lower, kTileBytes);
  MAINBOARD_PAIRS_MULTIPLY(kDone + 8, 0, 4, 6);
  _tile_loadd(7, r_next + right.lower, kTileBytes);
  MAINBOARD_PAIRS_MULTIPLY(kDone + 9, 1, 4, 7);
  MAINBOARD_PAIRS_MULTIPLY(kDone + 10, 2, 5, 6);
  MAINBOARD_PAIRS_MULTIPLY(kDone + 11, 3, 5, 7);
#undef MAINBOARD_PAIRS_MULTIPLY
}

}  // namespace mainboard::cpu::MAINBOARD_ISA

#endif  // __AMX_BF16__
