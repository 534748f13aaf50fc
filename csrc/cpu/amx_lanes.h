// The softmax of a few query rows whose scores lie transposed, as products of tiles leave them: the
// lanes of a vector are queries, and, of fewer than 16, several keys of each. Nothing is summed up
// across lanes but once at the end, and a peak only when the lanes disagree with it.
#pragma once

#include "csrc/cpu/amx.h"
#include "csrc/cpu/dot.h"

#if defined(__AMX_BF16__)

namespace mainboard::cpu::MAINBOARD_ISA {

// Rows that go together. Lane l is of row l % width and of the keys l / width + i 16 / width.
struct LaneRows {
  Vec peak, sum, slope;  // in powers of two; every lane sums up its own keys
  __m512i first, last, position;
  int64_t all_first, all_last;  // keys that every row sees
};

// What turns products into exponents.
struct LaneScores {
  float factor, cap, gain;
  bool capped, linear, plain;  // plain: a factor above zero is all

  LaneScores(const Attention& a, int64_t kv_head) {
    const float scale = score_scale(a, kv_head);
    factor = scale * kLog2e;
    capped = a.softcap > 0.0f;
    linear = a.alibi_slopes != nullptr;
    plain = !capped && !linear && scale > 0.0f;
    cap = a.softcap * kLog2e;
    gain = capped ? 2.0f * kLog2e * scale / a.softcap : 0.0f;
  }
};

constexpr int kFewKeys = kDotKeys;  // of a block, which a walk over keys gives

// Words of the weights of a block for 16 rows.
constexpr int kWeightsOfSet = 2 * kFewKeys / kTile * kTileWords;

constexpr int lane_width(int rows) { return rows <= 4 ? 4 : rows <= 8 ? 8 : 16; }

// A vector of scores from rows of kLanes queries, of which the first kWidth are meant.
template <int kWidth, int kLanes>
MAINBOARD_INLINE Vec load_lanes(const float* scores) {
  if constexpr (kWidth == kLanes) return load(scores);
  if constexpr (kWidth == 8) {
    const Vec low = _mm512_castps256_ps512(_mm256_loadu_ps(scores));
    return _mm512_insertf32x8(low, _mm256_loadu_ps(scores + kTile), 1);
  }
  Vec x = _mm512_castps128_ps512(_mm_loadu_ps(scores));
  x = _mm512_insertf32x4(x, _mm_loadu_ps(scores + kTile), 1);
  x = _mm512_insertf32x4(x, _mm_loadu_ps(scores + 2 * kTile), 2);
  return _mm512_insertf32x4(x, _mm_loadu_ps(scores + 3 * kTile), 3);
}

// Combines the lanes of each row; all of them hold the result.
template <int kWidth, class Combine>
MAINBOARD_INLINE Vec across_keys(Vec x, Combine&& combine) {
  if constexpr (kWidth <= 8) x = combine(x, _mm512_shuffle_f32x4(x, x, 0x4e));
  if constexpr (kWidth <= 4) x = combine(x, _mm512_shuffle_f32x4(x, x, 0xb1));
  return x;
}

// Four vectors transposed within each 128 bits.
MAINBOARD_INLINE void transpose_fours(__m512i* x) {
  const __m512i a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpackhi_epi32(x[0], x[1]);
  const __m512i c = _mm512_unpacklo_epi32(x[2], x[3]), d = _mm512_unpackhi_epi32(x[2], x[3]);
  x[0] = _mm512_unpacklo_epi64(a, c);
  x[1] = _mm512_unpackhi_epi64(a, c);
  x[2] = _mm512_unpacklo_epi64(b, d);
  x[3] = _mm512_unpackhi_epi64(b, d);
}

// kWidth vectors of 16 keys in all, from [key][row] to [row][key].
template <int kWidth>
MAINBOARD_INLINE void transpose_lanes(__m512i* x) {
  if constexpr (kWidth == 16) {
    transpose_words(x);
  } else if constexpr (kWidth == 8) {
    // Two keys a vector: lanes 4 j + i of a part are key 2 i + j of those of four vectors.
    const __m512i order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    transpose_fours(x);
    transpose_fours(x + 4);
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) {
      const __m512i low = _mm512_shuffle_i32x4(x[b], x[4 + b], 0x88);
      const __m512i high = _mm512_shuffle_i32x4(x[b], x[4 + b], 0xdd);
      x[b] = _mm512_permutexvar_epi32(order, low);
      x[4 + b] = _mm512_permutexvar_epi32(order, high);
    }
  } else {
    // Four keys a vector: lane 4 j + i is key 4 i + j.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    transpose_fours(x);
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) x[b] = _mm512_permutexvar_epi32(order, x[b]);
  }
}

// Softcap, ALiBi and mask on a block's scores; gives their peaks, lane by lane.
template <int kWidth, int kLanes>
inline Vec shape_lanes(const LaneScores& f, const LaneRows& rows, int64_t key, const float* scores,
                       float* to) {
  constexpr int kKeys = kTile / kWidth;  // of a vector
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __m512i at = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(key)),
                                _mm512_srli_epi32(lane, __builtin_ctz(kWidth)));
  Vec top = set1(-INFINITY);
  for (int i = 0; i < kFewKeys / kKeys; ++i) {
    Vec x = load_lanes<kWidth, kLanes>(scores + i * kKeys * kLanes);
    x = f.capped ? cap_score(Exp2<5>(), x * set1(f.gain), set1(f.cap), zero()) : x * set1(f.factor);
    if (f.linear) {
      const __m512i away = _mm512_abs_epi32(_mm512_sub_epi32(rows.position, at));
      x = _mm512_fnmadd_ps(rows.slope, _mm512_cvtepi32_ps(away), x);
    }
    const __mmask16 seen =
        _mm512_cmple_epi32_mask(rows.first, at) & _mm512_cmple_epi32_mask(at, rows.last);
    x = _mm512_mask_mov_ps(set1(-INFINITY), seen, x);
    store(to + i * kTile, x);
    top = max(top, x);
    at = _mm512_add_epi32(at, _mm512_set1_epi32(kKeys));
  }
  return top;
}

// Peaks of products as they are, which are copied where that makes vectors full.
template <int kWidth, int kLanes>
MAINBOARD_INLINE Vec gather_lanes(const float* scores, float* to) {
  constexpr int kKeys = kTile / kWidth;
  Vec top[4];
  for (int i = 0; i < kFewKeys / kKeys; i += 4) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const Vec x = load_lanes<kWidth, kLanes>(scores + (i + j) * kKeys * kLanes);
      if constexpr (kWidth < kLanes) store(to + (i + j) * kTile, x);
      top[j] = i == 0 ? x : max(top[j], x);
    }
  }
  return max(max(top[0], top[1]), max(top[2], top[3]));
}

// Where outputs of some rows lie: [column of 16][row].
struct LaneOutputs {
  float* data;
  int width, columns;
};

inline void raise_peaks(LaneRows& rows, Vec top, const LaneOutputs& o) {
  const Vec peak = max(rows.peak, top), keep = exp2_exact(rows.peak - peak);
  rows.peak = peak;
  rows.sum = rows.sum * keep;
  alignas(64) float factor[kTile];
  store(factor, keep);
  for (int i = 0; i < o.columns * o.width; ++i) {
    store(o.data + i * kTile, load(o.data + i * kTile) * set1(factor[i % o.width]));
  }
}

// The softmax over keys [key, key + 64) from scores [key][kLanes] to weights, left-hand rows
// [16 keys][even, odd elements][row] of a word for each key: its weight meets one element of the
// two in a word of values, and a zero the other. A peak stays until a score passes it by more than
// 2^8: weights as large lose nothing.
template <int kWidth, int kLanes>
inline void soften_lanes(const LaneScores& f, LaneRows& rows, int64_t key, float* scores,
                         uint32_t* weights, const LaneOutputs& o) {
  constexpr int kVecs = kWidth;  // of 16 keys
  alignas(64) float gathered[kWidth == kLanes ? kTile : kFewKeys * kWidth];
  float* x = kWidth == kLanes ? scores : gathered;
  const bool plain = f.plain && rows.all_first <= key && key + kFewKeys - 1 <= rows.all_last;
  Vec top = plain ? gather_lanes<kWidth, kLanes>(scores, x)
                  : shape_lanes<kWidth, kLanes>(f, rows, key, scores, x);
  top = across_keys<kWidth>(top, [](Vec a, Vec b) { return max(a, b); });
  const Vec factor = set1(plain ? f.factor : 1.0f);
  top = top * factor;
  if (_mm512_cmp_ps_mask(top, rows.peak + set1(8.0f), _CMP_GT_OQ) != 0) raise_peaks(rows, top, o);
  const Exp2<4> exp2;
  Vec sum[2] = {rows.sum, zero()};
  for (int part = 0; part < kFewKeys / kTileDims; ++part) {  // of 32 keys
    __m512i word[kVecs];
#pragma GCC unroll 16
    for (int i = 0; i < kVecs; ++i) {
      const float* at = x + (2 * part * kVecs + i) * kTile;
      const Vec low = exp2(_mm512_fmsub_ps(load(at), factor, rows.peak));
      const Vec high = exp2(_mm512_fmsub_ps(load(at + kVecs * kTile), factor, rows.peak));
      sum[0] = sum[0] + low;
      sum[1] = sum[1] + high;
      word[i] = round_weights<Operands::bfloat16>(low, high);
    }
    transpose_lanes<kWidth>(word);
    uint32_t* to = weights + part * 4 * kWidth * kTile;
    const __m512i lower = _mm512_set1_epi32(0xffff);
#pragma GCC unroll 16
    for (int r = 0; r < kWidth; ++r, to += kTile) {  // word j: keys j and 16 + j of those
      _mm512_storeu_si512(to, _mm512_and_si512(word[r], lower));
      _mm512_storeu_si512(to + kWidth * kTile, _mm512_slli_epi32(word[r], 16));
      _mm512_storeu_si512(to + 2 * kWidth * kTile, _mm512_srli_epi32(word[r], 16));
      _mm512_storeu_si512(to + 3 * kWidth * kTile, _mm512_andnot_si512(lower, word[r]));
    }
  }
  rows.sum = sum[0] + sum[1];
}

}  // namespace mainboard::cpu::MAINBOARD_ISA

#endif  // __AMX_BF16__
