// Attention for a few query rows (decode): the head dimension lies in the lanes.
//
// With so few rows the work is reading K and V once; they are widened in registers and never
// written anywhere. A score is a dot product, reduced across lanes for eight scores at a time.
#pragma once

#include "csrc/cpu/tile.h"

namespace mainboard::cpu::MAINBOARD_ISA {

constexpr int kDotRows = 8;     // most rows this kernel takes
constexpr int kDotKeys = 32;    // keys whose rows stay in the first-level cache meanwhile
constexpr int kRowsAtOnce = 4;  // rows that share one reading of a key
#if defined(__AVX512F__)
constexpr int kDotScores = 16;  // dot products in flight
#else
constexpr int kDotScores = 8;
#endif

// Two vectors' worth of elements. Which element goes where is the format's choice, and the same for
// every row, so queries and outputs are kept in that order meanwhile.
struct VecPair {
  Vec a, b;
};
template <class T>
inline VecPair load_pair(const T* p) {
  return {load(p), load(p + kLanes)};
}
template <class T>
constexpr bool kPairInterleaves = false;

#if defined(__AVX2__)
// A bfloat16 is the upper half of a float32: even elements by a shift, odd ones by a mask, where
// widening in order would shuffle each.
template <>
constexpr bool kPairInterleaves<BFloat16> = true;
#if defined(__AVX512F__)
inline VecPair load_pair(const BFloat16* p) {
  const __m512i raw = _mm512_loadu_si512(p);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(raw, 16)),
          _mm512_castsi512_ps(_mm512_and_si512(raw, _mm512_set1_epi32(0xffff0000)))};
}
// Both halves at once, where one by one each would take as many instructions.
inline VecPair load_pair(const Float8E5M2* p) {
  const __m512i half = halves_of(p);
  return {_mm512_cvtph_ps(_mm512_castsi512_si256(half)),
          _mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1))};
}
inline VecPair load_pair(const Float8E4M3* p) {
  const __m512i half = halves_of(p);
  const Vec unit = set1(256.0f);
  return {_mm512_cvtph_ps(_mm512_castsi512_si256(half)) * unit,
          _mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1)) * unit};
}
#else
inline VecPair load_pair(const BFloat16* p) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(raw, 16)),
          _mm256_castsi256_ps(_mm256_and_si256(raw, _mm256_set1_epi32(0xffff0000)))};
}
#endif
#endif

// Puts a row into the order that load_pair gives, or back.
template <class T>
inline void reorder_pairs(float* row, int dim, bool back) {
  if (!kPairInterleaves<T>) return;
  float line[2 * kLanes];
  for (int d = 0; d + 2 * kLanes <= dim; d += 2 * kLanes) {
    for (int i = 0; i < 2 * kLanes; ++i) {
      const int paired = i % 2 * kLanes + i / 2;
      line[back ? i : paired] = row[d + (back ? paired : i)];
    }
    std::memcpy(row + d, line, sizeof line);
  }
}

// The sums of kDotScores vectors.
inline void reduce_scores(const Vec* acc, float* to) {
#if defined(__AVX2__)
  for (int i = 0; i < kDotScores; i += 8) {
    __m256 pair[4];
    for (int j = 0; j < 4; ++j) {
      pair[j] = _mm256_hadd_ps(fold(acc[i + 2 * j]), fold(acc[i + 2 * j + 1]));
    }
    const __m256 low = _mm256_hadd_ps(pair[0], pair[1]), high = _mm256_hadd_ps(pair[2], pair[3]);
    const __m256 mixed = _mm256_permute2f128_ps(low, high, 0x21);
    _mm256_storeu_ps(to + i, _mm256_add_ps(_mm256_blend_ps(low, high, 0xf0), mixed));
  }
#else
  for (int i = 0; i < kDotScores; ++i) to[i] = reduce_add(acc[i]);
#endif
}

inline void prefetch(const char* row, int64_t bytes) {
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(row + b);
}

// The rows of one block of keys.
struct Block {
  const char* k[kDotKeys];
  const char* v[kDotKeys];
  int keys;
  int64_t v_bytes;
};

// scores[r][i] = q[r] . k[i] for R rows and the keys of a block.
template <int R, class T>
inline void dot_scores(const Block& block, int dim, const float* q, float* scores) {
  constexpr int kKeys = kDotScores / R;
  const int n = block.keys;
  for (int i = 0; i < n; i += kKeys) {
    const T* key[kKeys];
    for (int j = 0; j < kKeys; ++j) {
      // Values come next, in an order that the processor does not foresee; keys it does.
      if (i + j < n) prefetch(block.v[i + j], block.v_bytes);
      // Past the last key the last one is repeated; those scores are not read.
      key[j] = reinterpret_cast<const T*>(block.k[i + j < n ? i + j : n - 1]);
    }
    Vec acc[kDotScores];
#pragma GCC unroll 16
    for (int j = 0; j < kDotScores; ++j) acc[j] = zero();
    int d = 0;
    for (; d + 2 * kLanes <= dim; d += 2 * kLanes) {
      VecPair operand[kKeys];
#pragma GCC unroll 16
      for (int j = 0; j < kKeys; ++j) operand[j] = load_pair(key[j] + d);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const VecPair query = load_pair(q + r * dim + d);
#pragma GCC unroll 16
        for (int j = 0; j < kKeys; ++j) {
          Vec& sum = acc[r * kKeys + j];
          sum = fma(query.b, operand[j].b, fma(query.a, operand[j].a, sum));
        }
      }
    }
    if (d < dim) {
      for (int r = 0; r < R; ++r) {
        for (int j = 0; j < kKeys; ++j) {
          acc[r * kKeys + j] = fma(load(q + r * dim + d), load(key[j] + d), acc[r * kKeys + j]);
        }
      }
    }
    float sums[kDotScores];
    reduce_scores(acc, sums);
    for (int r = 0; r < R; ++r) {
      for (int j = 0; j < kKeys; ++j) scores[r * kDotKeys + i + j] = sums[r * kKeys + j];
    }
  }
}

// o[r] = o[r] * keep[r] + sum_i weights[r][i] v[i], over NV vectors of the value dimension.
template <int R, int NV, class T>
inline void add_values(const Block& block, int offset, const float* weights, const float* keep,
                       float* o, int dim) {
  Vec acc[R][NV];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) {
      acc[r][j] = load(o + r * dim + offset + j * kLanes) * set1(keep[r]);
    }
  }
  for (int i = 0; i < block.keys; ++i) {
    const T* value = reinterpret_cast<const T*>(block.v[i]) + offset;
    Vec operand[NV];
    if constexpr (NV == 1) {
      operand[0] = load(value);
    } else {
#pragma GCC unroll 8
      for (int j = 0; j < NV; j += 2) {
        const VecPair pair = load_pair(value + j * kLanes);
        operand[j] = pair.a;
        operand[j + 1] = pair.b;
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Vec weight = set1(weights[r * kDotKeys + i]);
#pragma GCC unroll 16
      for (int j = 0; j < NV; ++j) acc[r][j] = fma(weight, operand[j], acc[r][j]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) store(o + r * dim + offset + j * kLanes, acc[r][j]);
  }
}

template <int R, class T>
inline void add_values(const Block& block, const float* weights, const float* keep, float* o,
                       int dim) {
  constexpr int kVecs = kDotScores / R < 8 ? kDotScores / R : 8;
  int offset = 0;
  for (; offset + kVecs * kLanes <= dim; offset += kVecs * kLanes) {
    add_values<R, kVecs, T>(block, offset, weights, keep, o, dim);
  }
  for (; offset + 2 * kLanes <= dim; offset += 2 * kLanes) {
    add_values<R, 2, T>(block, offset, weights, keep, o, dim);
  }
  if (offset < dim) add_values<R, 1, T>(block, offset, weights, keep, o, dim);
}

struct DotRow {
  float peak, sum, slope;
  int64_t position;
  Span span;
};

// Softcap, ALiBi, mask and the online softmax on one row's scores of keys [key, key + n); there is
// room for Keys.
template <int Keys>
inline float soften_row(const Attention& a, DotRow& row, int64_t key, int n, float* scores) {
  const int first = static_cast<int>(clamp(row.span.first - key, 0, n));
  const int last = static_cast<int>(clamp(row.span.last - key + 1, first, n));
  for (int i = 0; i < first; ++i) scores[i] = -INFINITY;
  for (int i = last; i < Keys; ++i) scores[i] = -INFINITY;
  if (a.softcap > 0.0f) {
    const Vec cap = set1(a.softcap), inverse = set1(1.0f / a.softcap);
    float capped[Keys];
    for (int i = 0; i < n; i += kLanes) store(capped + i, cap * tanh(load(scores + i) * inverse));
    std::memcpy(scores + first, capped + first, sizeof(float) * (last - first));
  }
  if (a.alibi_slopes != nullptr) {
    for (int i = first; i < last; ++i) {
      scores[i] -= row.slope * std::fabs(static_cast<float>(row.position - key - i));
    }
  }
  Vec top = set1(row.peak);
  for (int i = 0; i < n; i += kLanes) top = max(top, load(scores + i));
  const float peak = reduce_max(top);
  const float reference = peak >= -3.0e38f ? peak : 0.0f;
  Vec sum = zero();
  for (int i = 0; i < n; i += kLanes) {
    const Vec e = exp_nonpositive(load(scores + i) - set1(reference));
    store(scores + i, e);
    sum = sum + e;
  }
  // Most blocks do not move the peak.
  const float keep = row.peak == reference ? 1.0f : exp_scalar(row.peak - reference);
  row.sum = row.sum * keep + reduce_add(sum);
  row.peak = peak;
  return keep;
}

// R rows against one block of keys.
template <int R, class T>
inline void attend_rows(const Attention& a, const Block& block, int64_t key, DotRow* row,
                        const float* q, float* o, float* scores) {
  float keep[R];
  dot_scores<R, T>(block, static_cast<int>(a.head_dim), q, scores);
  for (int r = 0; r < R; ++r) {
    keep[r] = soften_row<kDotKeys>(a, row[r], key, block.keys, scores + r * kDotKeys);
  }
  add_values<R, T>(block, scores, keep, o, static_cast<int>(a.value_dim));
}

inline void find_block(const Attention& a, const WorkItem& w, int64_t key, Block* block) {
  block->keys = static_cast<int>(clamp(w.key_end - key, 0, kDotKeys));
  key_rows(a.k, w.sequence, a.page_size, key, w.kv_head, block->keys, block->k);
  key_rows(a.v, w.sequence, a.page_size, key, w.kv_head, block->keys, block->v);
}

template <class T>
inline void attend_keys(const Attention& a, const WorkItem& w, int rows, DotRow* row,
                        const float* q, float* o, float* scores) {
  const int64_t dim = a.head_dim, value_dim = a.value_dim;
  Block block;
  block.v_bytes = value_dim * sizeof(T);
  for (int64_t key = w.key_begin; key < w.key_end; key += kDotKeys) {
    find_block(a, w, key, &block);
    int r = 0;
    for (; r + 4 <= rows; r += 4) {
      attend_rows<4, T>(a, block, key, row + r, q + r * dim, o + r * value_dim, scores);
    }
    for (; r + 2 <= rows; r += 2) {
      attend_rows<2, T>(a, block, key, row + r, q + r * dim, o + r * value_dim, scores);
    }
    if (r < rows) attend_rows<1, T>(a, block, key, row + r, q + r * dim, o + r * value_dim, scores);
  }
}

inline bool dot_serves(const Attention& a, const WorkItem& w) {
  return (w.query_end - w.query_begin) * a.group <= kDotRows && a.head_dim % kLanes == 0 &&
         a.value_dim % kLanes == 0;
}

inline int64_t dot_scratch_floats(const Attention& a) {
  return kDotRows * (a.head_dim + a.value_dim) + kRowsAtOnce * kDotKeys;
}

inline void attend_dotted(const Attention& a, const WorkItem& w, float* scratch) {
  const int rows = static_cast<int>((w.query_end - w.query_begin) * a.group);
  const int dim = static_cast<int>(a.head_dim), value_dim = static_cast<int>(a.value_dim);
  float* q = scratch;
  float* o = q + kDotRows * dim;
  float* scores = o + kDotRows * value_dim;
  DotRow row[kDotRows];
  for (int r = 0; r < rows; ++r) {
    const int64_t token = w.query_begin + r / a.group;
    const int64_t head = w.first_head + r % a.group;
    const int64_t position = token + w.sequence.keys - w.sequence.queries;
    widen_row(a.q.dtype, a.q.at(w.sequence.query_begin + token, 0, head), q + r * dim, dim);
    narrow(q + r * dim, score_scale(a, w.kv_head), q + r * dim, dim);
    row[r] = {-INFINITY, 0.0f, a.alibi_slopes == nullptr ? 0.0f : a.alibi_slopes[head], position,
              visible(a, w, position)};
  }
  std::memset(o, 0, sizeof(float) * rows * value_dim);
  with_type(a.k.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int r = 0; r < rows; ++r) reorder_pairs<T>(q + r * dim, dim, false);
    attend_keys<T>(a, w, rows, row, q, o, scores);
    for (int r = 0; r < rows; ++r) reorder_pairs<T>(o + r * value_dim, value_dim, true);
  });
  for (int r = 0; r < rows; ++r) {
    finish_row(a, w, r, o + r * value_dim, row[r].peak, row[r].sum);
  }
}

}  // namespace mainboard::cpu::MAINBOARD_ISA
