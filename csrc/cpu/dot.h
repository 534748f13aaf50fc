// Attention for a few query rows (decode): the head dimension lies in the lanes.
//
// With so few rows the work is reading K and V once; they are widened in registers and never
// written anywhere. A score is a dot product, reduced across lanes for eight scores at a time.
#pragma once

#include "csrc/cpu/operands.h"
#include "csrc/cpu/tile.h"

namespace mainboard::cpu::MAINBOARD_ISA {

constexpr int kDotRows = kRowsReadTogether;  // most rows of a key head that this kernel takes
constexpr int kDotKeys = 64;    // keys whose rows stay in the first-level cache meanwhile
constexpr int kRowsAtOnce = 4;  // rows that share one reading of a key
#if defined(__AVX512F__)
constexpr int kDotScores = 16;  // dot products in flight
#else
constexpr int kDotScores = 8;
#endif

// The sums of kDotScores vectors, in order.
#if defined(__AVX512F__)
inline Vec reduce_scores(const Vec* acc) {
  // Each step adds the halves of two vectors and leaves them side by side in one.
  Vec eight[8], four[4], two[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const Vec low = _mm512_mask_blend_ps(0xff00, acc[i], acc[i + 8]);
    eight[i] = low + _mm512_shuffle_f32x4(acc[i], acc[i + 8], 0x4e);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const Vec low = _mm512_mask_blend_ps(0xf0f0, eight[i], eight[i + 4]);
    const Vec high = _mm512_mask_blend_ps(0xf0f0, eight[i + 4], eight[i]);
    four[i] = low + _mm512_shuffle_f32x4(high, high, 0xb1);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    two[i] = _mm512_unpacklo_ps(four[i], four[i + 2]) + _mm512_unpackhi_ps(four[i], four[i + 2]);
  }
  return _mm512_unpacklo_ps(two[0], two[1]) + _mm512_unpackhi_ps(two[0], two[1]);
}
// From R vectors of R rows' scores for some keys each to one vector a row.
template <int R>
inline void gather_rows(Vec* x) {
  if constexpr (R == 2) {
    const Vec first = _mm512_shuffle_f32x4(x[0], x[1], 0x44);
    x[1] = _mm512_shuffle_f32x4(x[0], x[1], 0xee);
    x[0] = first;
  } else if constexpr (R == 4) {
    const Vec a = _mm512_shuffle_f32x4(x[0], x[1], 0x44),
              b = _mm512_shuffle_f32x4(x[2], x[3], 0x44);
    const Vec c = _mm512_shuffle_f32x4(x[0], x[1], 0xee),
              d = _mm512_shuffle_f32x4(x[2], x[3], 0xee);
    x[0] = _mm512_shuffle_f32x4(a, b, 0x88);
    x[1] = _mm512_shuffle_f32x4(a, b, 0xdd);
    x[2] = _mm512_shuffle_f32x4(c, d, 0x88);
    x[3] = _mm512_shuffle_f32x4(c, d, 0xdd);
  }
}
#elif defined(__AVX2__)
inline Vec reduce_scores(const Vec* acc) {
  __m256 pair[4];
  for (int j = 0; j < 4; ++j) pair[j] = _mm256_hadd_ps(acc[2 * j], acc[2 * j + 1]);
  const __m256 low = _mm256_hadd_ps(pair[0], pair[1]), high = _mm256_hadd_ps(pair[2], pair[3]);
  return _mm256_add_ps(_mm256_blend_ps(low, high, 0xf0), _mm256_permute2f128_ps(low, high, 0x21));
}
template <int R>
inline void gather_rows(Vec* x) {
  if constexpr (R == 2) {
    const Vec first = _mm256_permute2f128_ps(x[0], x[1], 0x20);
    x[1] = _mm256_permute2f128_ps(x[0], x[1], 0x31);
    x[0] = first;
  } else if constexpr (R == 4) {
    __m256d y[4];
    for (int i = 0; i < 4; ++i) y[i] = _mm256_castps_pd(x[i]);
    const Vec a = _mm256_castpd_ps(_mm256_unpacklo_pd(y[0], y[1]));
    const Vec b = _mm256_castpd_ps(_mm256_unpacklo_pd(y[2], y[3]));
    const Vec c = _mm256_castpd_ps(_mm256_unpackhi_pd(y[0], y[1]));
    const Vec d = _mm256_castpd_ps(_mm256_unpackhi_pd(y[2], y[3]));
    x[0] = _mm256_permute2f128_ps(a, b, 0x20);
    x[1] = _mm256_permute2f128_ps(c, d, 0x20);
    x[2] = _mm256_permute2f128_ps(a, b, 0x31);
    x[3] = _mm256_permute2f128_ps(c, d, 0x31);
  }
}
#endif

inline void prefetch(const char* row, int64_t bytes) {
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(row + b);
}

// Sums up the scores of R rows for kDotScores / R keys, the part'th of R such sets; they are in
// their rows' places, [r][key], when all sets have been put into order.
template <int R>
inline void put_scores(const Vec* acc, int part, float* scores) {
#if defined(__AVX2__)
  store(scores + part * kDotKeys, reduce_scores(acc));
#else
  constexpr int kKeys = kDotScores / R;
  for (int j = 0; j < kDotScores; ++j) {
    scores[j / kKeys * kDotKeys + part * kKeys + j % kKeys] = reduce_add(acc[j]);
  }
#endif
}
// Stores whole vectors only: what is stored in parts cannot be loaded as a whole for a while.
template <int R>
inline void order_scores([[maybe_unused]] float* scores) {
#if defined(__AVX2__)
  if constexpr (R > 1) {
    Vec row[R];
    for (int r = 0; r < R; ++r) row[r] = load(scores + r * kDotKeys);
    gather_rows<R>(row);
    for (int r = 0; r < R; ++r) store(scores + r * kDotKeys, row[r]);
  }
#endif
}

// The rows of some keys: where those of an item's first key head are, and how many bytes behind
// those that are meant lie.
struct KeyRows {
  const char* const* k = nullptr;
  const char* const* v = nullptr;
  int64_t k_offset = 0, v_offset = 0;
  int keys = 0;

  template <class T>
  const T* key(int i) const {
    return reinterpret_cast<const T*>(k[i] + k_offset);
  }
  template <class T>
  const T* value(int i) const {
    return reinterpret_cast<const T*>(v[i] + v_offset);
  }
};

// At most kDotKeys keys, and those that are read after them. While a row is read, so is the row
// that will stand in its place: reading never stops for arithmetic, and each stream of addresses is
// followed over the ends of pages, where the processor's own prefetching stops.
struct Block {
  KeyRows now, next;
};

// Asks for Count elements into the second-level cache: the first one has no room for two blocks,
// and loading into both is slower. Without a loop, whose own instructions took a sixth of the time.
template <int Count, class T>
inline void prefetch_part(const T* p) {
  constexpr int kLine = 64 / sizeof(T), kSecondLevel = 2;
#pragma GCC unroll 8
  for (int i = 0; i < Count; i += kLine) __builtin_prefetch(p + i, 0, kSecondLevel);
}

// The rows of some keys of a block, from the i'th on, and of those that are read after them.
template <int Keys, class T>
struct KeyPointers {
  const T *now[Keys], *next[Keys];

  KeyPointers(const Block& block, int i) {
    for (int j = 0; j < Keys; ++j) {
      // Past the last key the last one is repeated; those scores are not read.
      now[j] = block.now.key<T>(i + j < block.now.keys ? i + j : block.now.keys - 1);
      next[j] = i + j < block.next.keys ? block.next.key<T>(i + j) : now[j];
    }
  }
  // Asks for Count elements of each row that is read later.
  template <int Count>
  void prefetch(int d) const {
#pragma GCC unroll 16
    for (int j = 0; j < Keys; ++j) prefetch_part<Count>(next[j] + d);
  }
};

// acc[r][j] += q[r] * operand[j] for R rows and kDotScores / R keys.
template <int R>
inline void add_products(const VecPair* operand, int dim, const float* q, Vec* acc) {
  constexpr int kKeys = kDotScores / R;
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    const VecPair query = load_pair(q + r * dim);
    Vec* sum = acc + r * kKeys;
#pragma GCC unroll 16
    for (int j = 0; j < kKeys; ++j) sum[j] = fma(query.a, operand[j].a, sum[j]);
#pragma GCC unroll 16
    for (int j = 0; j < kKeys; ++j) sum[j] = fma(query.b, operand[j].b, sum[j]);
  }
}

// scores[r][i] = q[r] . k[i] for R rows and the keys of a block.
template <int R, class T>
inline void dot_scores(const Block& block, int dim, const float* q, float* scores) {
  constexpr int kKeys = kDotScores / R;
  const int n = block.now.keys;
  for (int i = 0; i < n; i += kKeys) {
    const KeyPointers<kKeys, T> key(block, i);
    Vec acc[kDotScores];
#pragma GCC unroll 16
    for (int j = 0; j < kDotScores; ++j) acc[j] = zero();
    int d = 0;
    VecPair operand[kKeys];
#if defined(__AVX512VBMI__)
    if constexpr (kLooksUp<T>) {
      for (; d + 4 * kLanes <= dim; d += 4 * kLanes) {
        Halves halves[kKeys];
        key.template prefetch<4 * kLanes>(d);
#pragma GCC unroll 16
        for (int j = 0; j < kKeys; ++j) halves[j] = load_halves(key.now[j] + d);
#pragma GCC unroll 16
        for (int j = 0; j < kKeys; ++j) operand[j] = widen_halves(halves[j].low);
        add_products<R>(operand, dim, q + d, acc);
#pragma GCC unroll 16
        for (int j = 0; j < kKeys; ++j) operand[j] = widen_halves(halves[j].high);
        add_products<R>(operand, dim, q + d + 2 * kLanes, acc);
      }
    }
#endif
    for (; d + 2 * kLanes <= dim; d += 2 * kLanes) {
      key.template prefetch<2 * kLanes>(d);
#pragma GCC unroll 16
      for (int j = 0; j < kKeys; ++j) operand[j] = load_pair(key.now[j] + d);
      add_products<R>(operand, dim, q + d, acc);
    }
    if (d < dim) {
      for (int r = 0; r < R; ++r) {
        for (int j = 0; j < kKeys; ++j) {
          acc[r * kKeys + j] = fma(load(q + r * dim + d), load(key.now[j] + d), acc[r * kKeys + j]);
        }
      }
    }
    constexpr int kSet = R * kKeys;
    float* to = scores + i / kSet * kSet;
    put_scores<R>(acc, i % kSet / kKeys, to);
    if (i + kKeys >= n || (i + kKeys) % kSet == 0) order_scores<R>(to);
  }
}

// N vectors of a row in pairs' order.
template <int N, class T>
inline void load_vectors(const T* p, Vec* to) {
  int j = 0;
#if defined(__AVX512VBMI__)
  if constexpr (kLooksUp<T>) {
#pragma GCC unroll 2
    for (; j + 4 <= N; j += 4) {
      const Halves halves = load_halves(p + j * kLanes);
      const VecPair low = widen_halves(halves.low), high = widen_halves(halves.high);
      to[j] = low.a;
      to[j + 1] = low.b;
      to[j + 2] = high.a;
      to[j + 3] = high.b;
    }
  }
#endif
#pragma GCC unroll 8
  for (; j + 2 <= N; j += 2) {
    const VecPair pair = load_pair(p + j * kLanes);
    to[j] = pair.a;
    to[j + 1] = pair.b;
  }
  if constexpr (N % 2 != 0) to[N - 1] = load(p + (N - 1) * kLanes);
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
  for (int i = 0; i < block.now.keys; ++i) {
    const T* value = block.now.value<T>(i) + offset;
    if (i < block.next.keys) prefetch_part<NV * kLanes>(block.next.value<T>(i) + offset);
    Vec operand[NV];
    load_vectors<NV>(value, operand);
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

}  // namespace mainboard::cpu::MAINBOARD_ISA
