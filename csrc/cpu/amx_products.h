// The products of the AMX kernel: a step's scores S^T = K Q^T and outputs O^T = V^T P^T, with a
// slice of other work after each product.
//
// Four of the eight tiles are in use. The processor renames tiles onto few registers of its own,
// and a tile that holds nothing since the configuration takes none of them: what is left lets loads
// and products run ahead. Where a neighbour shares the core, hardly a register would be left beside
// eight tiles, and each load would wait for the product before it.
#pragma once

#include "csrc/cpu/amx_pairs.h"

#if defined(__AMX_BF16__)

namespace mainboard::cpu::MAINBOARD_ISA {

// Products of tiles for each product of operands.
template <Operands kOperands>
constexpr int kProducts = kParts<kOperands> * kParts<kOperands>;

// Blocks of one panel whose values are added together, each sum loaded and stored once for all.
constexpr int kMostRun = 8;
struct TileRun {
  TilePanel* panel;
  int blocks = 0;
  int column = 0;  // values before it are added already
  bool fresh;      // the sums are zero, whatever memory holds
  bool moved;      // the output must be multiplied by `keep` first
  const uint32_t *v[kMostRun], *weights[kMostRun];
  float keep[kTilePanel];
};

// Two products of one tile of the left operand and two of the right one, which take turns.
template <Operands kOperands, class Slice>
MAINBOARD_INLINE void multiply_two(const uint32_t* left, const uint32_t* right, int right_words,
                                   Slice&& slice) {
  _tile_stream_loadd(2, left, kTileBytes);
  _tile_loadd(3, right, kTileBytes);
  MAINBOARD_MULTIPLY(kOperands, 0, 2, 3);
  slice(LowHalf());
  _tile_loadd(3, right + right_words, kTileBytes);
  MAINBOARD_MULTIPLY(kOperands, 1, 2, 3);
  slice(HighHalf());
}

// Two sums of a panel, in tiles 0 and 1.
MAINBOARD_INLINE void begin_sums(const float* o, bool fresh) {
  if (fresh) {
    _tile_zero(0);
    _tile_zero(1);
  } else {
    _tile_loadd(0, o, kPanelStride);
    _tile_loadd(1, o + kTile, kPanelStride);
  }
}
MAINBOARD_INLINE void store_sums(float* to) {
  _tile_stored(0, to, kPanelStride);
  _tile_stored(1, to + kTile, kPanelStride);
}

// The scores of a block.
template <Operands kOperands, class Slice>
MAINBOARD_INLINE void multiply_keys(const TileShape& shape, const TileStep& s, Slice&& slice) {
  const int steps = shape.steps;
  const uint32_t* k = s.k;
  float* to = s.scores;
#pragma GCC unroll 4
  for (int tile = 0; tile < kKeyTiles; ++tile, to += kTile * kTilePanel) {
    const uint32_t* q = s.panel->q;
    begin_sums(nullptr, true);
#pragma GCC unroll 4
    for (int step = 0; step < steps; ++step, k += kTileWords, q += 2 * kTileWords) {
      if constexpr (kParts<kOperands> == 2) {
        multiply_parts(k, kKeyTiles * steps * kTileWords, {q, kTileWords, 2 * steps * kTileWords},
                       slice);
      } else {
        multiply_two<kOperands>(k, q, kTileWords, slice);
      }
    }
    store_sums(to);
    MAINBOARD_TILE_FENCE;
  }
}

// o += v p for the keys of `blocks` blocks and 16 elements of the values.
template <Operands kOperands, class Slice>
MAINBOARD_INLINE void multiply_column(const TileShape& shape, const TileRun& run, int blocks,
                                      int column, Slice&& slice) {
  float* o = run.panel->o + column * kTile * kTilePanel;
  begin_sums(o, run.fresh);
#pragma GCC unroll 8
  for (int block = 0; block < blocks; ++block) {
    const uint32_t *v = run.v[block] + column * kTileWords, *p = run.weights[block];
    if constexpr (kParts<kOperands> == 2) {
      multiply_parts(v, shape.columns * kTileWords, {p, kTileWords, 2 * kTileWords}, slice);
    } else {
      multiply_two<kOperands>(v, p, kTileWords, slice);
    }
  }
  store_sums(o);
}

// Adds the values of a run up to column `until`.
template <Operands kOperands, class Slice>
MAINBOARD_INLINE void multiply_values(const TileShape& shape, TileRun& run, int until,
                                      Slice&& slice) {
  for (; run.column < until; ++run.column) {
    multiply_column<kOperands>(shape, run, run.blocks, run.column, slice);
  }
}

}  // namespace mainboard::cpu::MAINBOARD_ISA

#endif  // __AMX_BF16__
