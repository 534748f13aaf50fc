// The softmax of the AMX kernel: products become exponents of two, those become weights, and a
// panel of 32 queries remembers what they are relative to.
#pragma once

#include "csrc/cpu/amx_tiles.h"

#if defined(__AMX_BF16__)

namespace mainboard::cpu::MAINBOARD_ISA {

// What happens to a score between its product and its exponential. Linear is ALiBi where no query
// sees a key after itself; low is a softcap of scores that stay below half of it.
enum class Score { plain, linear, capped, low };

// Factors that turn a product into an exponent of two.
struct ScoreFactors {
  float factor;           // of the product
  float cap = 0;          // softcap, times log2 e
  float gain = 0;         // of the product, inside the softcap's tanh, times 2 log2 e
  float odd[4] = {};      // of its first, third, fifth and seventh power, where it is low,
  float high_square = 0;  // which it is while its square stays below this

  // For a softcap `most` tanh(inner x) of products x.
  void set_low(float inner, float most) {
    float power = most * inner;
    for (int i = 0; i < 4; ++i, power *= inner * inner) odd[i] = kLowTanh[i] * power;
    high_square = kLowTanhEnd * kLowTanhEnd / (inner * inner);
  }
};

// The running state of 32 queries. Scores are exponents of two here.
struct alignas(64) TilePanel {
  float reference[kTilePanel];   // what is subtracted from an exponent; near the peak
  float sum[kTilePanel];         // of the weights
  float slope[kTilePanel];       // ALiBi, times log2 e
  int32_t position[kTilePanel];  // of each query among the keys
  int32_t first[kTilePanel], last[kTilePanel];  // keys that each query sees
  int32_t any_first, any_last, all_first, all_last;
  const uint32_t* q;
  float* o;    // [value elements][32]
  bool begun;  // `reference` comes from scores
  bool fresh;  // nothing was added to `o` yet, which may hold anything

  bool sees_all(int64_t key, int64_t keys) const {
    return all_first <= key && key + keys - 1 <= all_last;
  }
};

// A panel against a block of 32 keys.
struct TileStep {
  TilePanel* panel = nullptr;
  int left;  // blocks of the panel that come in one row, this one included
  const uint32_t *k, *v;
  int64_t key;
  bool shaped;      // the scores are exponents already
  bool hidden_low;  // the scores are low products, and +inf where they are hidden
  bool moved;       // the output must be multiplied by `keep` first
  float keep[kTilePanel];
  float* scores;      // [32 keys][32 queries]
  uint32_t* weights;  // [part][half] tiles
};

struct TileShape {
  int steps, columns;  // tiles along the queries' and the values' elements
};

alignas(64) static const
    float kKeyIndex[kTileKeys] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                  16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};

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

// Whether a reference is looked at after the weights instead of before: a bfloat16 has the range of
// a float32, so weights may stand far above 1, and only a sum out of range sends a block back.
template <Operands kOperands, Score kScore>
constexpr bool kLate = kOperands != Operands::float16;
// ALiBi's exponents rise with every block; what rises by a known amount has more room.
template <Score kScore>
constexpr float kMostSum = kScore == Score::linear ? 0x1p64f : 0x1p30f;

// Exponentials of a block's scores, two keys of 16 queries at a time.
template <Operands kOperands, Score kScore>
struct Softening {
  const float* scores;
  uint32_t* weights;
  Exp2<kOperands == Operands::bfloat16 ? 4 : 5> exp2;
  Vec factor, cap;
  LowCap low_cap;
  SofteningHalf low, high;

  MAINBOARD_INLINE Softening(const ScoreFactors& f, const TileStep& s)
      : scores(s.scores),
        weights(s.weights),
        low_cap(f.odd, s.hidden_low ? INFINITY : f.high_square) {
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
  MAINBOARD_INLINE Vec weight(const float* product, int64_t key, const SofteningHalf& h) {
    const Vec x = load(product);
    if constexpr (kScore == Score::linear) {
      return exp2(fma(x, factor, fma(h.slope, set1(kKeyIndex[key]), h.offset)));
    } else if constexpr (kScore == Score::capped) {
      return exp2(cap_score(Exp2<5>(), x * factor, cap, h.offset));
    } else if constexpr (kScore == Score::low) {
      return exp2(low_cap(x, h.offset));
    } else {
      return exp2(fma(x, factor, h.offset));
    }
  }
  // Weights of keys 2 i and 2 i + 1 for the queries of one half.
  template <int half>
  MAINBOARD_INLINE void pair(int64_t i) {
    SofteningHalf& h = half == 0 ? low : high;
    const float* product = scores + 2 * i * kTilePanel + half * kTile;
    uint32_t* row = weights + half * kTileWords + i * kTile;
    const Vec even = weight(product, 2 * i, h), odd = weight(product + kTilePanel, 2 * i + 1, h);
    h.sum = h.sum + (even + odd);
    pin(h.sum);
    if constexpr (kOperands == Operands::pairs) {
      __m512i higher, lower;
      split_weights(even, odd, &higher, &lower);
      _mm512_store_si512(row, higher);
      _mm512_store_si512(row + 2 * kTileWords, lower);
    } else {
      _mm512_store_si512(row, round_weights<kOperands>(even, odd));
    }
  }
  // False where a sum left the range that late references allow, or a low score was high.
  MAINBOARD_INLINE bool in_range() const {
    const Vec most = set1(kMostSum<kScore>);
    const bool high_score = kScore == Score::low && low_cap.met_high();
    return (_mm512_cmp_ps_mask(low.sum, most, _CMP_NLT_UQ) |
            _mm512_cmp_ps_mask(high.sum, most, _CMP_NLT_UQ)) == 0 &&
           !high_score;
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
  MAINBOARD_INLINE void rows() {
    for (int64_t i = 0; i < kTileKeys; ++i) row(i);
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

template <Score kScore>
inline void find_peaks(const ScoreFactors& f, const TileStep& s, Vec* top) {
  Peak<kScore> peak(f, s);
  peak.rows();
  for (int half = 0; half < 2; ++half) top[half] = peak.result(f, s, half);
}

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
    Vec keep = _mm512_mask_mov_ps(set1(1.0f), up, exp2_exact(before - after));
    store(p.reference + half * kTile, after);
    store(p.sum + half * kTile, load(p.sum + half * kTile) * keep);
    if (s.moved) keep = keep * load(s.keep + half * kTile);
    store(s.keep + half * kTile, keep);
    moved |= up;
  }
  s.moved = s.moved || moved != 0;
}

// Before the next `keys` keys under ALiBi: a reference moves, ahead where the slope is steep, when
// what they are sure to rise by would leave too little room. It stays below the peak to come,
// unless the products fall by 2^40 within those keys.
inline void follow_rise(TileStep& s, int64_t keys) {
  TilePanel& p = *s.panel;
  const Vec room = set1(48.0f), kept = set1(40.0f);
  __mmask16 moved = 0;
  Vec after[2], keep[2];
  for (int half = 0; half < 2; ++half) {
    const Vec before = load(p.reference + half * kTile), sum = load(p.sum + half * kTile);
    const __m512i last = _mm512_loadu_si512(p.last + half * kTile);
    const __m512i left = _mm512_sub_epi32(last, _mm512_set1_epi32(static_cast<int>(s.key) - 1));
    const Vec seen = _mm512_min_ps(_mm512_cvtepi32_ps(left), set1(static_cast<float>(keys)));
    const Vec rise = load(p.slope + half * kTile) * seen;
    // The exponent of a sum of nothing is -inf, which is below everything.
    const Vec level = _mm512_getexp_ps(sum);
    const __mmask16 up = _mm512_cmp_ps_mask(level + rise, room, _CMP_GT_OQ);
    after[half] = _mm512_mask_add_ps(before, up, before, level + max(zero(), rise - kept));
    keep[half] = _mm512_mask_mov_ps(set1(1.0f), up, exp2_exact(before - after[half]));
    moved |= up;
  }
  if (moved == 0) return;
  for (int half = 0; half < 2; ++half) {
    store(p.reference + half * kTile, after[half]);
    store(p.sum + half * kTile, load(p.sum + half * kTile) * keep[half]);
    if (s.moved) keep[half] = keep[half] * load(s.keep + half * kTile);
    store(s.keep + half * kTile, keep[half]);
  }
  s.moved = true;
}

// The softmax of a block whose weights left their range, relative to its peaks.
template <Operands kOperands, Score kScore>
__attribute__((noinline)) void soften_block_again(const ScoreFactors& f, TileStep& s) {
  ScoreFactors seen = f;
  if (s.shaped) seen.factor = 1.0f;
  Vec top[2];
  find_peaks<kScore>(seen, s, top);
  follow_peak<kOperands>(s, top);
  Softening<kOperands, kScore> soft(f, s);
  for (int64_t i = 0; i < kTileKeys / 2; ++i) {
    soft.template pair<0>(i);
    soft.template pair<1>(i);
  }
  soft.finish(*s.panel);
}

inline void keep_output(float* o, const float* keep, const TileShape& shape) {
  const Vec low = load(keep), high = load(keep + kTile);
  for (int r = 0; r < shape.columns * kTile; ++r, o += kTilePanel) {
    store(o, load(o) * low);
    store(o + kTile, load(o + kTile) * high);
  }
}

}  // namespace mainboard::cpu::MAINBOARD_ISA

#endif  // __AMX_BF16__
