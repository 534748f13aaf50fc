// The products of the AMX kernels, in two forms that give the same bits: a step's scores
// S^T = K Q^T and outputs O^T = V^T P^T, with a slice of other work after each product.
//
// The processor renames tiles onto few registers of its own, and a tile that holds nothing since
// the configuration takes none of them. Alone on its core, a thread is fastest with the form that
// loads least. Where a neighbour shares the core, hardly a register is left beside eight tiles that
// hold something: a load then waits for the product before it, and a form of four tiles is faster.
#pragma once

#include "csrc/cpu/amx_pairs.h"

#if defined(__AMX_BF16__)

namespace mainboard::cpu::MAINBOARD_ISA {

enum class Form { alone, shared };

// Products of tiles for each product of operands.
template <Operands kOperands>
constexpr int kKeyProducts = kParts<kOperands> == 1 ? 1 : 4;
template <Operands kOperands>
constexpr int kValueProducts = kParts<kOperands> == 1 ? 1 : 3;

// Blocks of one panel whose values are added together, each sum loaded and stored once for all.
template <Form kForm>
constexpr int kMostRun = kForm == Form::alone ? 1 : 4;
constexpr int kLongestRun = kMostRun<Form::shared>;
struct TileRun {
  TilePanel* panel;
  int blocks = 0;
  int column = 0;  // values before it are added already
  bool fresh;      // the sums are zero, whatever memory holds
  bool moved;      // the output must be multiplied by `keep` first
  int depth[kLongestRun];
  const uint32_t *v[kLongestRun], *weights[kLongestRun];
  float keep[kTilePanel];
};

// Four products of two tiles each of the left operand (4, 5) and of the right one (6, 7).
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

// Sums of 16 rows of a panel in tiles 0 and 1, of 16 more in 2 and 3.
MAINBOARD_INLINE void begin_two(const float* o, bool fresh) {
  if (fresh) {
    _tile_zero(0);
    _tile_zero(1);
  } else {
    _tile_loadd(0, o, kPanelStride);
    _tile_loadd(1, o + kTile, kPanelStride);
  }
}
MAINBOARD_INLINE void begin_four(const float* o, bool fresh) {
  begin_two(o, fresh);
  if (fresh) {
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(2, o + kTile * kTilePanel, kPanelStride);
    _tile_loadd(3, o + kTile * kTilePanel + kTile, kPanelStride);
  }
}
MAINBOARD_INLINE void store_two(float* to) {
  _tile_stored(0, to, kPanelStride);
  _tile_stored(1, to + kTile, kPanelStride);
}
MAINBOARD_INLINE void store_four(float* to) {
  store_two(to);
  _tile_stored(2, to + kTile * kTilePanel, kPanelStride);
  _tile_stored(3, to + kTile * kTilePanel + kTile, kPanelStride);
}

// The scores of a block.
template <Operands kOperands, Form kForm, class Slice>
MAINBOARD_INLINE void multiply_keys(const TileShape& shape, const TileStep& s, int depth,
                                    Slice&& slice) {
  constexpr bool kFour = kForm == Form::alone && kParts<kOperands> == 1;
  constexpr int kTogether = kFour ? 2 : 1;  // tiles along the keys
  const int steps = shape.steps;
  float* to = s.scores;
  for (int tile = 0; tile < 2 * depth; tile += kTogether, to += kTogether * kTile * kTilePanel) {
    const uint32_t *k = s.k + tile * steps * kTileWords, *q = s.panel->q;
    if constexpr (kFour) {
      begin_four(nullptr, true);
    } else {
      begin_two(nullptr, true);
    }
    for (int step = 0; step < steps; ++step, k += kTileWords, q += 2 * kTileWords) {
      if constexpr (kParts<kOperands> == 2) {
        multiply_parts<true>(k, kKeyTiles * steps * kTileWords,
                             {q, kTileWords, 2 * steps * kTileWords}, slice);
      } else if constexpr (kFour) {
        multiply_four<kOperands>(k, steps * kTileWords, q, kTileWords, slice);
      } else {
        multiply_two<kOperands>(k, q, kTileWords, slice);
      }
    }
    if constexpr (kFour) {
      store_four(to);
    } else {
      store_two(to);
    }
    MAINBOARD_TILE_FENCE;
  }
}

// o += v p for one block. Its weights stay in tiles 4 to 7: 36 loads a block, where loading each
// operand as it is used takes 48.
template <Operands kOperands, class Slice>
MAINBOARD_INLINE void multiply_resident(const TileRun& run, int depth, int until, Slice&& slice) {
  constexpr int kDepth = kWeightDepth;
  const bool deep = depth == kDepth;
  const uint32_t *p = run.weights[0], *v = run.v[0] + run.column * kDepth * kTileWords;
  float* o = run.panel->o + run.column * kTile * kTilePanel;
  _tile_loadd(4, p, kTileBytes);
  _tile_loadd(5, p + kDepth * kTileWords, kTileBytes);
  if (deep) {
    _tile_loadd(6, p + kTileWords, kTileBytes);
    _tile_loadd(7, p + (kDepth + 1) * kTileWords, kTileBytes);
  }
  for (int c = run.column; c < until; ++c, v += kDepth * kTileWords, o += kTile * kTilePanel) {
    if (run.fresh) {
      _tile_zero(0);
    } else {
      _tile_loadd(0, o, kPanelStride);
    }
    _tile_stream_loadd(2, v, kTileBytes);
    MAINBOARD_MULTIPLY(kOperands, 0, 2, 4);
    slice(LowHalf());
    if (run.fresh) {
      _tile_zero(1);
    } else {
      _tile_loadd(1, o + kTile, kPanelStride);
    }
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

// o += v p for the keys of all blocks and 16 elements of the values.
template <Operands kOperands, class Slice>
MAINBOARD_INLINE void multiply_column(const TileShape& shape, const TileRun& run, int column,
                                      Slice&& slice) {
  constexpr int kDepth = kWeightDepth;
  float* o = run.panel->o + column * kTile * kTilePanel;
  begin_two(o, run.fresh);
  for (int block = 0; block < run.blocks; ++block) {
    const uint32_t *v = run.v[block] + column * kDepth * kTileWords, *p = run.weights[block];
    for (int i = 0; i < run.depth[block]; ++i, v += kTileWords, p += kTileWords) {
      if constexpr (kParts<kOperands> == 2) {
        multiply_parts<false>(v, shape.columns * kDepth * kTileWords,
                              {p, kDepth * kTileWords, 2 * kDepth * kTileWords}, slice);
      } else {
        multiply_two<kOperands>(v, p, kDepth * kTileWords, slice);
      }
    }
  }
  store_two(o);
}

// Adds the values of a run up to column `until`.
template <Operands kOperands, Form kForm, class Slice>
MAINBOARD_INLINE void multiply_values(const TileShape& shape, TileRun& run, int depth, int until,
                                      Slice&& slice) {
  if constexpr (kForm == Form::alone && kParts<kOperands> == 1) {
    if (run.column < until) multiply_resident<kOperands>(run, depth, until, slice);
    run.column = until;
  } else {
    for (; run.column < until; ++run.column) {
      multiply_column<kOperands>(shape, run, run.column, slice);
    }
  }
}

// Whether a neighbour shares this core now: loads then wait for the products before them. Takes
// about a microsecond and fills all tiles, which are to be configured anew.
inline bool core_is_shared() {
#if defined(MAINBOARD_CORE_IS_SHARED)
  return MAINBOARD_CORE_IS_SHARED();
#else
  constexpr int kRounds = 2, kProducts = 16;
  alignas(64) static const uint32_t zeros[kTileWords] = {};
  uint64_t resident = ~uint64_t{0}, loaded = ~uint64_t{0};
  unsigned processor;
  MAINBOARD_TILE_FENCE;
  begin_four(nullptr, true);
  for (int round = 0; round < kRounds; ++round) {
    uint64_t begin = __rdtscp(&processor);
    for (int i = 0; i < kProducts; i += 4) {
      multiply_four<Operands::bfloat16>(zeros, 0, zeros, 0, NoSlice());
    }
    uint64_t ticks = __rdtscp(&processor) - begin;
    loaded = ticks < loaded ? ticks : loaded;
    begin = __rdtscp(&processor);
    for (int i = 0; i < kProducts; i += 4) {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    ticks = __rdtscp(&processor) - begin;
    resident = ticks < resident ? ticks : resident;
  }
  MAINBOARD_TILE_FENCE;
  return loaded > 2 * resident;
#endif
}

}  // namespace mainboard::cpu::MAINBOARD_ISA

#endif  // __AMX_BF16__
