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

// A panel against a block of 64 keys.
struct TileStep {
  TilePanel* panel = nullptr;
  const uint32_t *k, *v;
  int64_t key;
  bool shaped;  // the scores are exponents already
  bool moved;   // the output must be multiplied by `keep` first
  float keep[kTilePanel];
  float* scores;      // [64][32]
  uint32_t* weights;  // [part][32 keys][half] tiles
};

struct TileShape {
  int steps, columns;  // tiles along the queries' and the values' elements; columns are even
};

// 2^x with a polynomial of four or five powers, relative error below 2.7e-6 or 1e-7; 0 for -inf.
template <int Powers>
inline Vec exp2_short(Vec x) {
  const Vec r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  Vec p;
  if constexpr (Powers == 4) {
    p = fma(set1(0.0135341706f), r, set1(0.0520114638f));
    p = fma(fma(p, r, set1(0.241442755f)), r, set1(0.693003833f));
    p = fma(p, r, set1(1.00000262f));
  } else {
    p = fma(set1(0.00187757693f), r, set1(0.00898934063f));
    p = fma(fma(p, r, set1(0.0558263175f)), r, set1(0.240153611f));
    p = fma(fma(p, r, set1(0.693153083f)), r, set1(0.99999994f));
  }
  return _mm512_scalef_ps(p, x);
}

// cap tanh(x) + offset through 1 - 2 / (1 + e^2x); `x` comes times 2 log2 e.
template <int Powers>
inline Vec cap_score(Vec x, Vec cap, Vec offset) {
  const Vec e = exp2_short<Powers>(_mm512_min_ps(x, set1(120.0f))) + set1(1.0f);
  const Vec guess = _mm512_rcp14_ps(e);
  const Vec inverse = guess * _mm512_fnmadd_ps(e, guess, set1(2.0f));
  return fma(cap * set1(-2.0f), inverse, cap + offset);
}

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

// Exponentials of a block's scores, two keys of all queries at a time.
template <int Parts, Score kScore>
struct Softening {
  static constexpr int kPowers = Parts == 1 ? 4 : 5;
  const float* scores;
  uint32_t* weights;
  Vec factor, cap, offset[2], slope[2], sum[2];
  __m512i order;

  Softening(const ScoreFactors& f, const TileStep& s) : scores(s.scores), weights(s.weights) {
    alignas(64) static const uint16_t kInterleave[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                         21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                         11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    order = _mm512_load_si512(kInterleave);
    factor = set1(s.shaped ? 1.0f : kScore == Score::capped ? f.gain : f.factor);
    cap = set1(f.cap);
    for (int half = 0; half < 2; ++half) {
      offset[half] = zero() - load(s.panel->reference + half * kTile);
      sum[half] = load(s.panel->sum + half * kTile);
      if constexpr (kScore == Score::linear) {
        slope[half] = load(s.panel->slope + half * kTile);
        offset[half] = offset[half] + linear_start(s, half);
      }
    }
  }
  Vec weight(int key, int half) const {
    const Vec product = load(scores + key * kTilePanel + half * kTile);
    if constexpr (kScore == Score::linear) {
      const Vec from = fma(slope[half], set1(kKeyIndex[key]), offset[half]);
      return exp2_short<kPowers>(fma(product, factor, from));
    } else if constexpr (kScore == Score::capped) {
      return exp2_short<kPowers>(cap_score<5>(product * factor, cap, offset[half]));
    } else {
      return exp2_short<kPowers>(fma(product, factor, offset[half]));
    }
  }
  void pair(int i) {
    uint32_t* row = weights + i / kTile * 2 * kTileWords + i % kTile * kTile;
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const Vec even = weight(2 * i, half), odd = weight(2 * i + 1, half);
      sum[half] = sum[half] + (even + odd);
      const __m512i both = _mm512_permutexvar_epi16(order, round_both(even, odd));
      _mm512_store_si512(row + half * kTileWords, both);
      if constexpr (Parts == 2) {
        const Vec even_rest = even - _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
        const __m512i upper = _mm512_and_si512(both, _mm512_set1_epi32(0xffff0000));
        const Vec odd_rest = odd - _mm512_castsi512_ps(upper);
        _mm512_store_si512(row + (kTileKeys / kTileDims * 2 + half) * kTileWords,
                           _mm512_permutexvar_epi16(order, round_both(even_rest, odd_rest)));
      }
    }
  }
  void finish(TilePanel& panel) const {
    for (int half = 0; half < 2; ++half) store(panel.sum + half * kTile, sum[half]);
  }
};

// The largest score of each query, as the products come.
template <Score kScore>
struct Peak {
  const float* scores;
  Vec factor, slope[2], top[2];

  Peak(const ScoreFactors& f, const TileStep& s) : scores(s.scores), factor(set1(f.factor)) {
    for (int half = 0; half < 2; ++half) {
      top[half] = set1(-INFINITY);
      if constexpr (kScore == Score::linear) slope[half] = load(s.panel->slope + half * kTile);
    }
  }
  void row(int key) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      Vec score = load(scores + key * kTilePanel + half * kTile);
      if constexpr (kScore == Score::linear) {
        score = fma(score, factor, slope[half] * set1(kKeyIndex[key]));
      }
      top[half] = max(top[half], score);
    }
  }
  // As exponents.
  Vec result(const ScoreFactors& f, const TileStep& s, int half) const {
    if (s.shaped) return top[half];
    if constexpr (kScore == Score::linear) return top[half] + linear_start(s, half);
    if constexpr (kScore == Score::capped) {
      return cap_score<5>(top[half] * set1(f.gain), set1(f.cap), zero());
    }
    return top[half] * factor;
  }
};

// A panel's reference follows its peak only when the peak has left it by 2^8, which a float32
// bears easily; most blocks then leave the output as it is.
inline void follow_peak(TileStep& s, const Vec* top) {
  TilePanel& p = *s.panel;
  const Vec slack = set1(8.0f);
  __mmask16 moved = 0;
  for (int half = 0; half < 2; ++half) {
    const Vec before = load(p.reference + half * kTile);
    const __mmask16 up = _mm512_cmp_ps_mask(top[half], before + slack, _CMP_GT_OQ);
    const Vec after = _mm512_mask_mov_ps(before, up, top[half]);
    const Vec keep = _mm512_mask_mov_ps(set1(1.0f), up, exp2_short<5>(before - after));
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
template <int Parts>
constexpr int kKeyProducts = Parts * Parts;
template <int Parts>
constexpr int kValueProducts = Parts == 1 ? 1 : 3;
constexpr int kLeftPart[4] = {0, 0, 1, 1}, kRightPart[4] = {0, 1, 0, 1};

// 32 keys' scores; `slice` runs after every four products.
template <int Parts, class Slice>
inline void multiply_keys(const TileShape& shape, const TileStep& s, int pair, Slice&& slice) {
  const int steps = shape.steps;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int product = 0; product < kKeyProducts<Parts>; ++product) {
    const uint32_t* k = s.k + (kLeftPart[product] * 4 + pair * 2) * steps * kTileWords;
    const uint32_t* q = s.panel->q + kRightPart[product] * steps * 2 * kTileWords;
    for (int step = 0; step < steps; ++step, k += kTileWords, q += 2 * kTileWords) {
      _tile_stream_loadd(4, k, kTileBytes);
      _tile_loadd(6, q, kTileBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, q + kTileWords, kTileBytes);
      _tile_dpbf16ps(1, 4, 7);
      _tile_stream_loadd(5, k + steps * kTileWords, kTileBytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      slice();
    }
  }
  constexpr int kStride = kTilePanel * sizeof(float);
  float* to = s.scores + pair * kTileDims * kTilePanel;
  _tile_stored(0, to, kStride);
  _tile_stored(1, to + kTile, kStride);
  _tile_stored(2, to + kTile * kTilePanel, kStride);
  _tile_stored(3, to + kTile * kTilePanel + kTile, kStride);
  MAINBOARD_TILE_FENCE;
}

// o += v p for 32 elements of the values.
template <int Parts, class Slice>
inline void multiply_values(const TileShape& shape, const TileStep& s, int column, Slice&& slice) {
  constexpr int kStride = kTilePanel * sizeof(float), kDepth = kTileKeys / kTileDims;
  float* o = s.panel->o + column * kTile * kTilePanel;
  _tile_loadd(0, o, kStride);
  _tile_loadd(1, o + kTile, kStride);
  _tile_loadd(2, o + kTile * kTilePanel, kStride);
  _tile_loadd(3, o + kTile * kTilePanel + kTile, kStride);
#pragma GCC unroll 3
  for (int product = 0; product < kValueProducts<Parts>; ++product) {
    const uint32_t* v = s.v + (kLeftPart[product] * shape.columns + column) * kDepth * kTileWords;
    const uint32_t* p = s.weights + kRightPart[product] * kDepth * 2 * kTileWords;
#pragma GCC unroll 2
    for (int depth = 0; depth < kDepth; ++depth, v += kTileWords, p += 2 * kTileWords) {
      _tile_stream_loadd(4, v, kTileBytes);
      _tile_loadd(6, p, kTileBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, p + kTileWords, kTileBytes);
      _tile_dpbf16ps(1, 4, 7);
      _tile_stream_loadd(5, v + kDepth * kTileWords, kTileBytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      slice();
    }
  }
  _tile_stored(0, o, kStride);
  _tile_stored(1, o + kTile, kStride);
  _tile_stored(2, o + kTile * kTilePanel, kStride);
  _tile_stored(3, o + kTile * kTilePanel + kTile, kStride);
}

// The softmax of `now` between the scores of `next` and the values of `before`; `next` and
// `before` may be null. Afterwards `now` has weights and `next` has scores and `top`, its peaks.
template <int Parts, Score kNow, Score kNext>
inline void run_step(const TileShape& shape, const ScoreFactors& f, const TileStep* next,
                     const TileStep* now, const TileStep* before, Vec* top) {
  constexpr int kPairs = kTileKeys / 2;
  const int value_groups = kValueProducts<Parts> * shape.columns;
  const int groups = kKeyProducts<Parts> * 2 * shape.steps + value_groups;
  const int pairs_each = (kPairs + groups - 1) / groups;
  const int rows_each = (kTileKeys + value_groups - 1) / value_groups;
  Softening<Parts, kNow> soft(f, *now);
  int pair = 0, row = 0;
  auto soften = [&]() __attribute__((always_inline)) {
    const int end = pair + pairs_each < kPairs ? pair + pairs_each : kPairs;
    for (; pair < end; ++pair) soft.pair(pair);
  };
  MAINBOARD_TILE_FENCE;
  if (next != nullptr) {
    for (int i = 0; i < 2; ++i) multiply_keys<Parts>(shape, *next, i, soften);
  }
  Peak<kNext> peak(f, next != nullptr ? *next : *now);
  auto soften_and_peak = [&]() __attribute__((always_inline)) {
    soften();
    const int end = row + rows_each < kTileKeys ? row + rows_each : kTileKeys;
    for (; row < end; ++row) peak.row(row);
  };
  if (before != nullptr) {
    for (int c = 0; c < shape.columns; c += 2) {
      multiply_values<Parts>(shape, *before, c, soften_and_peak);
    }
  }
  for (; pair < kPairs; ++pair) soft.pair(pair);
  soft.finish(*now->panel);
  MAINBOARD_TILE_FENCE;
  if (next == nullptr) return;
  for (; row < kTileKeys; ++row) peak.row(row);
  for (int half = 0; half < 2; ++half) top[half] = peak.result(f, *next, half);
}

}  // namespace mainboard::cpu::MAINBOARD_ISA

#endif  // __AMX_BF16__
