// One step of the AMX kernel: the scores of one block, the softmax of the block before it and the
// values of the one before that, in one stream of instructions.
//
// Tiles and vectors are different units of the processor and both must be kept busy, so the
// vectors' work is cut into slices that stand between the tiles' products. Queries lie in the
// columns: S^T = K Q^T, O^T = V^T P^T. Nothing is reduced across lanes, and P leaves the softmax
// as the right-hand operand that the tiles take.
#pragma once

#include "csrc/cpu/amx_pairs.h"

#if defined(__AMX_BF16__)

namespace mainboard::cpu::MAINBOARD_ISA {

// Products of tiles for each product of operands.
template <Operands kOperands>
constexpr int kKeyProducts = kParts<kOperands> == 1 ? 1 : 4;
template <Operands kOperands>
constexpr int kValueProducts = kParts<kOperands> == 1 ? 1 : 3;

// Four products of two tiles each of the left operand (4, 5) and of the right one (6, 7), a slice
// of other work after each.
template <Operands kOperands, class Slice>
MAINBOARD_INLINE void multiply_four(const uint32_t* left, int left_words, const uint32_t* right,
                                    int right_words, Slice&& slice) {
  _tile_stream_loadd(4, left, kTileBytes);
  _tile_loadd(6, right, kTileBytes);
  MAINBOARD_MULTIPLY(kOperands, 0, 4, 6);
  slice(LowHalf());
  _tile_loadd(7, right + right_words, kTileBytes);
  MAINBOARD_MULTIPLY(kOperands, 1, 4, 7);
  slice(HighHalf());
  _tile_stream_loadd(5, left + left_words, kTileBytes);
  MAINBOARD_MULTIPLY(kOperands, 2, 5, 6);
  slice(LowHalf());
  MAINBOARD_MULTIPLY(kOperands, 3, 5, 7);
  slice(HighHalf());
}

// Stores the four sums into 32 rows of a panel.
MAINBOARD_INLINE void store_four(float* to) {
  _tile_stored(0, to, kPanelStride);
  _tile_stored(1, to + kTile, kPanelStride);
  _tile_stored(2, to + kTile * kTilePanel, kPanelStride);
  _tile_stored(3, to + kTile * kTilePanel + kTile, kPanelStride);
}

// The scores of keys [32 pair, 32 pair + 32) of a block.
template <Operands kOperands, class Slice>
MAINBOARD_INLINE void multiply_keys(const TileShape& shape, const TileStep& s, int pair,
                                    Slice&& slice) {
  if constexpr (kParts<kOperands> == 2) return multiply_key_pairs(shape, s, pair, slice);
  const int steps = shape.steps;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const uint32_t* k = s.k + pair * 2 * steps * kTileWords;
  const uint32_t* q = s.panel->q;
  for (int step = 0; step < steps; ++step, k += kTileWords, q += 2 * kTileWords) {
    multiply_four<kOperands>(k, steps * kTileWords, q, kTileWords, slice);
  }
  store_four(s.scores + pair * kTileDims * kTilePanel);
  MAINBOARD_TILE_FENCE;
}

// o += v p for 32 elements of the values. The weights of 64 keys stay in tiles 4 to 7 from the
// first column on: 36 loads a block, where loading each operand as it is used takes 48.
template <Operands kOperands, class Slice>
MAINBOARD_INLINE void multiply_resident(const TileStep& s, int column, Slice&& slice) {
  constexpr int kDepth = kWeightDepth;
  const bool deep = s.depth == kDepth;
  if (column == 0) {
    _tile_loadd(4, s.weights, kTileBytes);
    _tile_loadd(5, s.weights + kDepth * kTileWords, kTileBytes);
    if (deep) {
      _tile_loadd(6, s.weights + kTileWords, kTileBytes);
      _tile_loadd(7, s.weights + (kDepth + 1) * kTileWords, kTileBytes);
    }
  }
  const uint32_t* v = s.v + column * kDepth * kTileWords;
  float* o = s.panel->o + column * kTile * kTilePanel;
  for (int i = 0; i < 2; ++i, v += kDepth * kTileWords, o += kTile * kTilePanel) {
    _tile_loadd(0, o, kPanelStride);
    _tile_stream_loadd(2, v, kTileBytes);
    MAINBOARD_MULTIPLY(kOperands, 0, 2, 4);
    slice(LowHalf());
    _tile_loadd(1, o + kTile, kPanelStride);
    MAINBOARD_MULTIPLY(kOperands, 1, 2, 5);
    slice(HighHalf());
    if (deep) {
      _tile_stream_loadd(3, v + kTileWords, kTileBytes);
      MAINBOARD_MULTIPLY(kOperands, 0, 3, 6);
      slice(LowHalf());
    }
    _tile_stored(0, o, kPanelStride);
    if (deep) {
      MAINBOARD_MULTIPLY(kOperands, 1, 3, 7);
      slice(HighHalf());
    }
    _tile_stored(1, o + kTile, kPanelStride);
  }
}

// o += v p for 32 elements of the values.
template <Operands kOperands, class Slice>
MAINBOARD_INLINE void multiply_values(const TileShape& shape, const TileStep& s, int column,
                                      Slice&& slice) {
  if constexpr (kParts<kOperands> == 2) return multiply_value_pairs(shape, s, column, slice);
  multiply_resident<kOperands>(s, column, slice);
}

// The vectors' work of one step, handed out after each product.
template <Operands kOperands, Score kNow, Score kNext>
struct Slices {
  Softening<kOperands, kNow> soft;
  Peak<kNext> peak;
  int64_t pairs, rows, pairs_each, rows_each, low_pair = 0, high_pair = 0, row = 0;

  MAINBOARD_INLINE Slices(const TileShape& shape, const ScoreFactors& f, const TileStep& now,
                          const TileStep& next)
      : soft(f, now), peak(f, next) {
    const int value_products = kValueProducts<kOperands> * shape.columns * 4;
    const int products = kKeyProducts<kOperands> * shape.steps * 8 + value_products;
    pairs = now.depth * kTileDims / 2;
    rows = next.depth * kTileDims;
    pairs_each = (kTileKeys + products - 1) / products;
    rows_each = (kTileKeys + value_products - 1) / value_products;
  }
  template <class Half>
  MAINBOARD_INLINE void soften(Half, int64_t count) {
    int64_t& next = Half::value == 0 ? low_pair : high_pair;
    const int64_t end = next + count < pairs ? next + count : pairs;
    for (; next < end; ++next) soft.template pair<Half::value>(next);
  }
  MAINBOARD_INLINE void find_peaks(int64_t count) {
    if constexpr (kLate<kOperands, kNext>) return;
    const int64_t end = row + count < rows ? row + count : rows;
    for (; row < end; ++row) peak.row(row);
  }
};

// The softmax of `now` between the scores of `next` and the values of `before`; `next` and
// `before` may be null. Afterwards `now` has weights and `next` has scores and, where they are not
// late, `top`, its peaks. False, and the sums as they were, where weights left their range.
template <Operands kOperands, Score kNow, Score kNext>
inline bool run_step(const TileShape& shape, const ScoreFactors& f, const TileStep* next,
                     const TileStep* now, const TileStep* before, Vec* top) {
  Slices<kOperands, kNow, kNext> work(shape, f, *now, next != nullptr ? *next : *now);
  MAINBOARD_TILE_FENCE;
  if (next != nullptr) {
    auto slice = [&](auto half)
                     __attribute__((always_inline)) { work.soften(half, work.pairs_each); };
    for (int i = 0; i < next->depth; ++i) multiply_keys<kOperands>(shape, *next, i, slice);
  }
  if (before != nullptr) {
    auto slice = [&](auto half) __attribute__((always_inline)) {
      work.soften(half, work.pairs_each);
      work.find_peaks(work.rows_each);
    };
    for (int c = 0; c < shape.columns; c += 2) {
      multiply_values<kOperands>(shape, *before, c, slice);
    }
  }
  work.soften(LowHalf(), kTileKeys);
  work.soften(HighHalf(), kTileKeys);
  MAINBOARD_TILE_FENCE;
  if (next != nullptr && !kLate<kOperands, kNext>) {
    work.find_peaks(kTileKeys);
    for (int half = 0; half < 2; ++half) top[half] = work.peak.result(f, *next, half);
  }
  if (kLate<kOperands, kNow> && !work.soft.in_range()) return false;
  work.soft.finish(*now->panel);
  return true;
}

constexpr TileShape kFullShape{4, 8};  // 128 elements

// The same for three whole blocks of heads of 128: one slice a product, and nothing to decide.
template <Operands kOperands, Score kScore>
inline bool run_full_step(const ScoreFactors& f, const TileStep& next, const TileStep& now,
                          const TileStep& before) {
  static_assert(kParts<kOperands> == 1 && kLate<kOperands, kScore>);
  Softening<kOperands, kScore> soft(f, now);
  int64_t low = 0, high = 0;
  auto slice = [&](auto half) __attribute__((always_inline)) {
    int64_t& pair = decltype(half)::value == 0 ? low : high;
    soft.template pair<decltype(half)::value>(pair++);
  };
  MAINBOARD_TILE_FENCE;
  for (int i = 0; i < kWeightDepth; ++i) multiply_keys<kOperands>(kFullShape, next, i, slice);
  for (int c = 0; c < kFullShape.columns; c += 2) multiply_resident<kOperands>(before, c, slice);
  MAINBOARD_TILE_FENCE;
  if (!soft.in_range()) return false;
  soft.finish(*now.panel);
  return true;
}

}  // namespace mainboard::cpu::MAINBOARD_ISA

#endif  // __AMX_BF16__
