// One step of the AMX kernel: the scores of one block, the softmax of the block before it and the
// values of blocks before that, in one stream of instructions.
//
// Tiles and vectors are different units of the processor and both must be kept busy, so the
// vectors' work is cut into slices that stand between the tiles' products. Queries lie in the
// columns: S^T = K Q^T, O^T = V^T P^T. Nothing is reduced across lanes, and P leaves the softmax
// as the right-hand operand that the tiles take.
#pragma once

#include "csrc/cpu/amx_products.h"

#if defined(__AMX_BF16__)

namespace mainboard::cpu::MAINBOARD_ISA {

constexpr int64_t kPairs = kTileKeys / 2;  // of keys, in each half of the queries

// What is known of a step when it is compiled: that its heads have 128 elements, and that the run
// whose values it adds is a longest one. Then it has as many products as slices, and nothing to
// decide.
enum class Known { nothing, shape, shape_and_run };

// The vectors' work of one step, handed out after each product.
template <Operands kOperands, Score kNow, Score kNext>
struct Slices {
  Softening<kOperands, kNow> soft;
  Peak<kNext> peak;
  int64_t pairs_each, rows_each, low_pair = 0, high_pair = 0, row = 0;

  MAINBOARD_INLINE Slices(const TileShape& shape, const ScoreFactors& f, const TileStep& now,
                          const TileStep& next)
      : soft(f, now), peak(f, next) {
    const int value_products = kProducts<kOperands> * shape.columns * 2;
    const int products = kProducts<kOperands> * shape.steps * 4 + value_products;
    pairs_each = (kTileKeys + products - 1) / products;
    rows_each = (kTileKeys + value_products - 1) / value_products;
  }
  template <class Half>
  MAINBOARD_INLINE void soften(Half, int64_t count) {
    int64_t& next = Half::value == 0 ? low_pair : high_pair;
    const int64_t end = next + count < kPairs ? next + count : kPairs;
    for (; next < end; ++next) soft.template pair<Half::value>(next);
  }
  // The share of one product.
  template <class Half>
  MAINBOARD_INLINE void soften(Half half) {
    soften(half, pairs_each);
  }
  // The same where that is one pair, of which enough are left.
  template <class Half>
  MAINBOARD_INLINE void soften_next(Half) {
    soft.template pair<Half::value>(Half::value == 0 ? low_pair++ : high_pair++);
  }
  MAINBOARD_INLINE void find_peaks(int64_t count) {
    if constexpr (kLate<kOperands, kNext>) return;
    const int64_t end = row + count < kTileKeys ? row + count : kTileKeys;
    for (; row < end; ++row) peak.row(row);
  }
};

// What is handed out where the shape is known: a slice for each product of operands, and nothing
// else.
template <class Work>
struct KnownSlices {
  Work& work;
  template <class Half>
  MAINBOARD_INLINE void operator()(Half half) {
    work.soften_next(half);
  }
};
template <class Work>
constexpr bool kFewSlices<KnownSlices<Work>> = true;

constexpr TileShape kKnownShape{4, 8};  // 128 elements
// Blocks in a run, unless it ends before: a reference that moves ends it, and ALiBi moves many.
template <Operands kOperands, Score kScore>
constexpr int kLongestRun = kScore == Score::linear  ? 2
                            : kParts<kOperands> == 2 ? 4
                                                     : kMostRun;
// Columns of values in a step whose run is known.
template <Operands kOperands, Score kScore>
constexpr int kKnownColumns = kKnownShape.columns / kLongestRun<kOperands, kScore>;

// The softmax of `now` between the scores of `next` and values, up to column `until`, of a run that
// went before; `next` may be null unless the shape is known, and the run empty. Afterwards `now`
// has weights and `next` has scores and, where they are not late, `top`, its peaks. False, and the
// sums as they were, where weights left their range.
template <Operands kOperands, Score kNow, Score kNext, Known kKnown = Known::nothing>
inline bool run_step(const TileShape& given, const ScoreFactors& f, const TileStep* next,
                     const TileStep* now, TileRun& run, int until, Vec* top) {
  const TileShape shape = kKnown == Known::nothing ? given : kKnownShape;
  Slices<kOperands, kNow, kNext> work(shape, f, *now, next != nullptr ? *next : *now);
  MAINBOARD_TILE_FENCE;
  if constexpr (kKnown != Known::nothing) {
    multiply_keys<kOperands>(shape, *next, KnownSlices<decltype(work)>{work});
  } else if (next != nullptr) {
    auto slice = [&](auto half) __attribute__((always_inline)) { work.soften(half); };
    multiply_keys<kOperands>(shape, *next, slice);
  }
  if constexpr (kKnown == Known::shape_and_run) {
    constexpr int kRun = kLongestRun<kOperands, kNext>, kColumns = kKnownColumns<kOperands, kNext>;
    for (int i = 0; i < kColumns; ++i) {
      multiply_column<kOperands>(shape, run, kRun, run.column + i,
                                 KnownSlices<decltype(work)>{work});
    }
    run.column += kColumns;
  } else {
    auto slice = [&](auto half) __attribute__((always_inline)) {
      work.soften(half);
      work.find_peaks(work.rows_each);
    };
    multiply_values<kOperands>(shape, run, until, slice);
    work.soften(LowHalf(), kPairs);
    work.soften(HighHalf(), kPairs);
  }
  MAINBOARD_TILE_FENCE;
  if (next != nullptr && !kLate<kOperands, kNext>) {
    work.find_peaks(kTileKeys);
    for (int half = 0; half < 2; ++half) top[half] = work.peak.result(f, *next, half);
  }
  if (kLate<kOperands, kNow> && !work.soft.in_range()) return false;
  work.soft.finish(*now->panel);
  return true;
}

}  // namespace mainboard::cpu::MAINBOARD_ISA

#endif  // __AMX_BF16__
