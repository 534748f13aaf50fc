// What happens to a block's products before its softmax where the softmax alone does not make
// scores of them: masks, and what no fast step can do.
#pragma once

#include "csrc/cpu/amx_soften.h"
#include "csrc/cpu/tile.h"

#if defined(__AMX_BF16__)

namespace mainboard::cpu::MAINBOARD_ISA {

constexpr float kLog2e = 1.44269504f, kLn2 = 0.693147181f;

// How a call's scores are made: what a fast step can do, or everything before the softmax.
struct ScorePlan {
  ScoreFactors factors;
  Score score = Score::plain;
  bool always_shaped = false;

  ScorePlan(const Attention& a, const WorkItem& w) {
    const float scale = score_scale(a, w.kv_head);
    factors.factor = scale * kLog2e;
    const bool capped = a.softcap > 0.0f, linear = a.alibi_slopes != nullptr;
    if (capped) {
      factors.cap = a.softcap * kLog2e;
      factors.gain = 2.0f * kLog2e * scale / a.softcap;
      factors.set_low(scale / a.softcap, factors.cap);
    }
    // A peak of products is a peak of scores only where the scale is positive.
    const bool extreme = capped && !(std::isfinite(factors.odd[3]) && factors.high_square > 0.0f &&
                                     std::isfinite(factors.high_square));
    always_shaped =
        scale <= 0.0f || (capped && linear) || (linear && w.sequence.right > 0) || extreme;
    if (always_shaped) return;
    score = capped ? Score::capped : linear ? Score::linear : Score::plain;
  }
};

// Turns products into exponents in place: softcap, ALiBi and mask. Gives their peaks.
inline void shape_exponents(const Attention& a, const ScoreFactors& f, const TileStep& s,
                            Vec* top) {
  const TilePanel& p = *s.panel;
  const __m512i one = _mm512_set1_epi32(1);
  for (int half = 0; half < 2; ++half) {
    const __m512i first = _mm512_loadu_si512(p.first + half * kTile);
    const __m512i last = _mm512_loadu_si512(p.last + half * kTile);
    const __m512i position = _mm512_loadu_si512(p.position + half * kTile);
    const Vec slope = load(p.slope + half * kTile);
    __m512i key = _mm512_set1_epi32(static_cast<int>(s.key));
    top[half] = set1(-INFINITY);
    for (int i = 0; i < kTileKeys; ++i, key = _mm512_add_epi32(key, one)) {
      float* at = s.scores + i * kTilePanel + half * kTile;
      Vec x = load(at);
      x = a.softcap > 0.0f ? cap_score(Exp2<5>(), x * set1(f.gain), set1(f.cap), zero())
                           : x * set1(f.factor);
      if (a.alibi_slopes != nullptr) {
        const __m512i away = _mm512_abs_epi32(_mm512_sub_epi32(position, key));
        x = _mm512_fnmadd_ps(slope, _mm512_cvtepi32_ps(away), x);
      }
      const __mmask16 seen =
          _mm512_cmple_epi32_mask(first, key) & _mm512_cmple_epi32_mask(key, last);
      x = _mm512_mask_mov_ps(set1(-INFINITY), seen, x);
      store(at, x);
      top[half] = max(top[half], x);
    }
  }
}

// Hides products of keys that a query does not see.
inline void hide_products(const TileStep& s) {
  const TilePanel& p = *s.panel;
  // All queries see keys [begin, end) of the block.
  const int64_t begin = clamp(p.all_first - s.key, 0, kTileKeys);
  const int64_t end = clamp(p.all_last - s.key + 1, 0, kTileKeys);
  const auto hide = [&](int64_t i) {
    const __m512i key = _mm512_set1_epi32(static_cast<int>(s.key + i));
    for (int half = 0; half < kTilePanel; half += kTile) {
      const __mmask16 before = _mm512_cmplt_epi32_mask(key, _mm512_loadu_si512(p.first + half));
      const __mmask16 behind = _mm512_cmpgt_epi32_mask(key, _mm512_loadu_si512(p.last + half));
      _mm512_mask_storeu_ps(s.scores + i * kTilePanel + half, before | behind, set1(-INFINITY));
    }
  };
  for (int64_t i = 0; i < begin; ++i) hide(i);
  for (int64_t i = end; i < kTileKeys; ++i) hide(i);
}

// The same under a softcap, where a hidden product is +inf: no score, capped as low ones are, has
// a weight then. False, and nothing hidden, where some product is not low.
inline bool hide_low_products(const ScoreFactors& f, TileStep& s, Vec* top) {
  const TilePanel& p = *s.panel;
  const __m512i one = _mm512_set1_epi32(1);
  LowCap cap(f.odd, f.high_square);
  for (int i = 0; i < kTileKeys * 2; ++i) cap.look(load(s.scores + i * kTile));
  if (cap.met_high()) return false;
  for (int half = 0; half < 2; ++half) {
    const __m512i first = _mm512_loadu_si512(p.first + half * kTile);
    const __m512i last = _mm512_loadu_si512(p.last + half * kTile);
    __m512i key = _mm512_set1_epi32(static_cast<int>(s.key));
    __mmask16 some = 0;
    Vec peak = set1(-INFINITY);
    for (int i = 0; i < kTileKeys; ++i, key = _mm512_add_epi32(key, one)) {
      const __mmask16 seen =
          _mm512_cmple_epi32_mask(first, key) & _mm512_cmple_epi32_mask(key, last);
      float* at = s.scores + i * kTilePanel + half * kTile;
      peak = _mm512_mask_max_ps(peak, seen, peak, load(at));
      _mm512_mask_storeu_ps(at, _mm512_knot(seen), set1(INFINITY));
      some |= seen;
    }
    top[half] = _mm512_mask_mov_ps(peak, some, cap(peak, zero()));
  }
  s.hidden_low = true;
  return true;
}

// Turns what that left into exponents in place.
inline void shape_low(const ScoreFactors& f, TileStep& s) {
  LowCap cap(f.odd, f.high_square);
  for (int i = 0; i < kTileKeys * 2; ++i) {
    float* at = s.scores + i * kTile;
    store(at, cap(load(at), zero()));
  }
  s.hidden_low = false;
  s.shaped = true;
}

}  // namespace mainboard::cpu::MAINBOARD_ISA

#endif  // __AMX_BF16__
