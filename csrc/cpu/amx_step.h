// One step of the AMX kernel: the scores of one block, the softmax of the block before it and the
// values of the one before that, in one stream of instructions.
//
// Tiles and vectors are different units of the processor and both must be kept busy, so the
// vectors' work is cut into slices that stand between the tiles' products. Queries lie in the
// columns: S^T = K Q^T, O^T = V^T P^T. Nothing is reduced across lanes, and P leaves the softmax
// as the right-hand operand that the tiles take.
#pragma once

#include "csrc/cpu/amx_tiles.h"

#if defined(__AMX_BF16__)

namespace mainboard::cpu::MAINBOARD_ISA {

// What happens to a score between its product and its exponential. Linear is ALiBi where no query
// sees a key after itself.
enum class Score { plain, linear, capped };

// Factors that turn a product into an exponent of two.
struct ScoreFactors {
  float factor;    // of the product
  float cap = 0;   // softcap, times log2 e
  float gain = 0;  // of the product, inside the softcap's tanh, times 2 log2 e
};

// The running state of 32 queries. Scores are exponents of two here.
struct TilePanel {
  const uint32_t* q;
  float* o;                      // [value elements][32]
  float reference[kTilePanel];   // what is subtracted from an exponent; near the peak
  float sum[kTilePanel];         // of the weights
  float slope[kTilePanel];       // ALiBi, times log2 e
  int32_t position[kTilePanel];  // of each query among the keys
  int32_t first[kTilePanel], last[kTilePanel];  // keys that each query sees
  int32_t any_first, any_last, all_first, all_last;
};

// A panel against a block of 64 keys, or of 32 where it sees no more.
struct TileStep {
  TilePanel* panel = nullptr;
  int depth;  // in tiles of 32 keys
  const uint32_t *k, *v;
  int64_t key;
  bool shaped;  // the scores are exponents already
  bool moved;   // the output must be multiplied by `keep` first
  float keep[kTilePanel];
  float* scores;      // [64][32]
  uint32_t* weights;  // [part][half][32 keys] tiles
};

struct TileShape {
  int steps, columns;  // tiles along the queries' and the values' elements; columns are even
};

alignas(64) static const float kKeyIndex[kTileKeys] = {
    0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
    22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43,
    44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};

// ALiBi's share of the exponent of a block's first key.
inline Vec linear_start(const TileStep& s, int half) {
  const __m512i position = _mm512_loadu_si512(s.panel->position + half * kTile);
  const __m512i key = _mm512_set1_epi32(static_cast<int>(s.key));
  return load(s.panel->slope + half * kTile) * _mm512_cvtepi32_ps(_mm512_sub_epi32(key, position));
}

// State of 16 of a panel's queries. No arrays: the compiler keeps single members in registers.
struct SofteningHalf {
  Vec offset, slope, sum;
};

// Exponentials of a block's scores, two keys of 16 queries at a time.
template <Operands kOperands, Score kScore>
struct Softening {
  const float* scores;
  uint32_t* weights;
  Exp2<kOperands == Operands::bfloat16 ? 4 : 5> exp2;
  Vec factor, cap;
  SofteningHalf low, high;
  __m512i order;

  MAINBOARD_INLINE Softening(const ScoreFactors& f, const TileStep& s)
      : scores(s.scores), weights(s.weights) {
    alignas(64) static const uint16_t kInterleave[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                         21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                         11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    order = _mm512_load_si512(kInterleave);
    factor = set1(s.shaped ? 1.0f : kScore == Score::capped ? f.gain : f.factor);
    cap = set1(f.cap);
    low = begin(s, 0);
    high = begin(s, 1);
  }
  MAINBOARD_INLINE static SofteningHalf begin(const TileStep& s, int half) {
    SofteningHalf h;
    h.offset = zero() - load(s.panel->reference + half * kTile);
    h.sum = load(s.panel->sum + half * kTile);
    h.slope = zero();
    if constexpr (kScore == Score::linear) {
      h.slope = load(s.panel->slope + half * kTile);
      h.offset = h.offset + linear_start(s, half);
    }
    return h;
  }
  MAINBOARD_INLINE Vec weight(const float* product, int64_t key, const SofteningHalf& h) const {
    const Vec x = load(product);
    if constexpr (kScore == Score::linear) {
      return exp2(fma(x, factor, fma(h.slope, set1(kKeyIndex[key]), h.offset)));
    } else if constexpr (kScore == Score::capped) {
      return exp2(cap_score(Exp2<5>(), x * factor, cap, h.offset));
    } else {
      return exp2(fma(x, factor, h.offset));
    }
  }
  // Weights of keys 2 i and 2 i + 1 for the queries of one half.
  template <int half>
  MAINBOARD_INLINE void pair(int64_t i) {
    SofteningHalf& h = half == 0 ? low : high;
    const float* product = scores + 2 * i * kTilePanel + half * kTile;
    uint32_t* row = weights + half * kWeightDepth * kTileWords + i * kTile;
    const Vec even = weight(product, 2 * i, h), odd = weight(product + kTilePanel, 2 * i + 1, h);
    h.sum = h.sum + (even + odd);
    const __m512i both = _mm512_permutexvar_epi16(order, round_weights<kOperands>(even, odd));
    _mm512_store_si512(row, both);
    if constexpr (kOperands == Operands::pairs) {
      const Vec even_rest = even - _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
      const __m512i upper = _mm512_and_si512(both, _mm512_set1_epi32(0xffff0000));
      const Vec odd_rest = odd - _mm512_castsi512_ps(upper);
      _mm512_store_si512(row + 2 * kWeightDepth * kTileWords,
                         _mm512_permutexvar_epi16(order, round_both(even_rest, odd_rest)));
    }
  }
  MAINBOARD_INLINE void finish(TilePanel& panel) const {
    store(panel.sum, low.sum);
    store(panel.sum + kTile, high.sum);
  }
};

// The largest score of each query, as the products come.
template <Score kScore>
struct Peak {
  const float* scores;
  Vec factor, low_slope, high_slope, low, high;

  MAINBOARD_INLINE Peak(const ScoreFactors& f, const TileStep& s) : scores(s.scores) {
    factor = set1(f.factor);
    low_slope = kScore == Score::linear ? load(s.panel->slope) : zero();
    high_slope = kScore == Score::linear ? load(s.panel->slope + kTile) : zero();
    low = high = set1(-INFINITY);
  }
  MAINBOARD_INLINE void row(int64_t key) {
    Vec a = load(scores + key * kTilePanel), b = load(scores + key * kTilePanel + kTile);
    if constexpr (kScore == Score::linear) {
      const Vec index = set1(kKeyIndex[key]);
      a = fma(a, factor, low_slope * index);
      b = fma(b, factor, high_slope * index);
    }
    low = max(low, a);
    high = max(high, b);
  }
  // As exponents.
  MAINBOARD_INLINE Vec result(const ScoreFactors& f, const TileStep& s, int half) const {
    const Vec top = half == 0 ? low : high;
    if constexpr (kScore == Score::linear) return top + linear_start(s, half);
    if constexpr (kScore == Score::capped) {
      return cap_score(Exp2<5>(), top * set1(f.gain), set1(f.cap), zero());
    }
    return top * factor;
  }
};

// A panel's reference follows its peak only when the peak has left it by 2^8, which a float32
// bears easily; most blocks then leave the output as it is.
template <Operands kOperands>
inline void follow_peak(TileStep& s, const Vec* top) {
  TilePanel& p = *s.panel;
  // A float16 is kept whole only down to 2^-14, so weights in it stand 2^7 higher.
  const Vec lift = set1(kOperands == Operands::float16 ? 7.0f : 0.0f);
  const Vec slack = set1(8.0f) + lift;
  __mmask16 moved = 0;
  for (int half = 0; half < 2; ++half) {
    const Vec before = load(p.reference + half * kTile);
    const __mmask16 up = _mm512_cmp_ps_mask(top[half], before + slack, _CMP_GT_OQ);
    const Vec after = _mm512_mask_sub_ps(before, up, top[half], lift);
    const Vec keep = _mm512_mask_mov_ps(set1(1.0f), up, exp2_exact(before - after));
    store(p.reference + half * kTile, after);
    store(p.sum + half * kTile, load(p.sum + half * kTile) * keep);
    store(s.keep + half * kTile, keep);
    moved |= up;
  }
  s.moved = moved != 0;
}

inline void keep_output(const TileStep& s, const TileShape& shape) {
  const Vec low = load(s.keep), high = load(s.keep + kTile);
  float* o = s.panel->o;
  for (int r = 0; r < shape.columns * kTile; ++r, o += kTilePanel) {
    store(o, load(o) * low);
    store(o + kTile, load(o + kTile) * high);
  }
}

// Which part of the left and of the right operand each product takes. A score needs all four, since
// its error is not relative to it; of an output, the product of both rests is below what is kept.
template <Operands kOperands>
constexpr int kKeyProducts = kParts<kOperands> * kParts<kOperands>;
template <Operands kOperands>
constexpr int kValueProducts = kParts<kOperands> == 1 ? 1 : 3;
constexpr int kLeftPart[4] = {0, 0, 1, 1}, kRightPart[4] = {0, 1, 0, 1};

using LowHalf = std::integral_constant<int, 0>;
using HighHalf = std::integral_constant<int, 1>;
struct NoSlice {
  template <class Half>
  MAINBOARD_INLINE void operator()(Half) const {}
};

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

constexpr int kPanelStride = kTilePanel * sizeof(float);

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
  const int steps = shape.steps;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int product = 0; product < kKeyProducts<kOperands>; ++product) {
    const uint32_t* k = s.k + (kLeftPart[product] * 4 + pair * 2) * steps * kTileWords;
    const uint32_t* q = s.panel->q + kRightPart[product] * steps * 2 * kTileWords;
    for (int step = 0; step < steps; ++step, k += kTileWords, q += 2 * kTileWords) {
      multiply_four<kOperands>(k, steps * kTileWords, q, kTileWords, slice);
    }
  }
  store_four(s.scores + pair * kTileDims * kTilePanel);
  MAINBOARD_TILE_FENCE;
}

// o += v p for 32 elements of the values.
template <Operands kOperands, class Slice>
MAINBOARD_INLINE void multiply_values(const TileShape& shape, const TileStep& s, int column,
                                      Slice&& slice) {
  constexpr int kDepth = kWeightDepth;
  float* o = s.panel->o + column * kTile * kTilePanel;
  _tile_loadd(0, o, kPanelStride);
  _tile_loadd(1, o + kTile, kPanelStride);
  _tile_loadd(2, o + kTile * kTilePanel, kPanelStride);
  _tile_loadd(3, o + kTile * kTilePanel + kTile, kPanelStride);
#pragma GCC unroll 3
  for (int product = 0; product < kValueProducts<kOperands>; ++product) {
    const uint32_t* v = s.v + (kLeftPart[product] * shape.columns + column) * kDepth * kTileWords;
    const uint32_t* p = s.weights + kRightPart[product] * kDepth * 2 * kTileWords;
    for (int depth = 0; depth < s.depth; ++depth, v += kTileWords, p += kTileWords) {
      multiply_four<kOperands>(v, kDepth * kTileWords, p, kDepth * kTileWords, slice);
    }
  }
  store_four(o);
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
    const int64_t end = row + count < rows ? row + count : rows;
    for (; row < end; ++row) peak.row(row);
  }
};

// The softmax of `now` between the scores of `next` and the values of `before`; `next` and
// `before` may be null. Afterwards `now` has weights and `next` has scores and `top`, its peaks.
template <Operands kOperands, Score kNow, Score kNext>
inline void run_step(const TileShape& shape, const ScoreFactors& f, const TileStep* next,
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
    for (int c = 0; c < shape.columns; c += 2) multiply_values<kOperands>(shape, *before, c, slice);
  }
  work.soften(LowHalf(), kTileKeys);
  work.soften(HighHalf(), kTileKeys);
  work.soft.finish(*now->panel);
  MAINBOARD_TILE_FENCE;
  if (next == nullptr) return;
  work.find_peaks(kTileKeys);
  for (int half = 0; half < 2; ++half) top[half] = work.peak.result(f, *next, half);
}

}  // namespace mainboard::cpu::MAINBOARD_ISA

#endif  // __AMX_BF16__
