// A step of the AMX kernel (amx_step.h) on pairs of bfloat16: three whole blocks of heads of 128,
// with a slice of the softmax for every three or four products of tiles and nothing to decide.
#pragma once

#include "csrc/cpu/amx_step.h"

#if defined(__AMX_BF16__)

namespace mainboard::cpu::MAINBOARD_ISA {

template <Score kScore>
struct PairSlices {
  Softening<Operands::pairs, kScore>& soft;
  int64_t low = 0, high = 0;
  template <class Half>
  MAINBOARD_INLINE void operator()(Half) {
    soft.template pair<Half::value>(Half::value == 0 ? low++ : high++);
  }
};
template <Score kScore>
constexpr bool kFewSlices<PairSlices<kScore>> = true;

template <Score kScore>
inline bool run_full_pairs(const ScoreFactors& f, const TileStep& next, const TileStep& now,
                           const TileStep& before) {
  static_assert(kLate<Operands::pairs, kScore>);
  Softening<Operands::pairs, kScore> soft(f, now);
  PairSlices<kScore> slice{soft};
  MAINBOARD_TILE_FENCE;
  for (int i = 0; i < kWeightDepth; ++i) {
    multiply_keys<Operands::pairs>(kFullShape, next, i, slice);
  }
  for (int c = 0; c < kFullShape.columns; c += 2) {
    multiply_values<Operands::pairs>(kFullShape, before, c, slice);
  }
  MAINBOARD_TILE_FENCE;
  if (!soft.in_range()) return false;
  soft.finish(*now.panel);
  return true;
}

}  // namespace mainboard::cpu::MAINBOARD_ISA

#endif  // __AMX_BF16__
