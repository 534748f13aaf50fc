// Attention for a few query rows (decode): the head dimension lies in the lanes.
//
// With so few rows the work is reading K and V once; they are widened in registers and never
// written anywhere. A score is a dot product, reduced across lanes for eight scores at a time.
#pragma once

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
// One byte less its sign has 128 values: the upper halves of their float32 fit into four registers.
template <class T>
struct HalvesOfBytes {
  alignas(64) uint16_t bits[128];
  HalvesOfBytes() {
    for (int i = 0; i < 128; ++i) {
      const float x = T{static_cast<uint8_t>(i)}.to_float();
      bits[i] = x == x ? static_cast<uint16_t>(bits_of_float(x) >> 16) : 0x7fc0;
    }
  }
};
template <class T>
static const HalvesOfBytes<T> halves_of_bytes;

template <class T>
inline VecPair look_up_pair(const T* p) {
  const uint16_t* table = halves_of_bytes<T>.bits;
  const __m512i byte =
      _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  const __m512i small =
      _mm512_permutex2var_epi16(_mm512_load_si512(table), byte, _mm512_load_si512(table + 32));
  const __m512i large =
      _mm512_permutex2var_epi16(_mm512_load_si512(table + 64), byte, _mm512_load_si512(table + 96));
  const __mmask32 is_large = _mm512_test_epi16_mask(byte, _mm512_set1_epi16(0x40));
  const __m512i magnitude = _mm512_mask_mov_epi16(small, is_large, large);
  // magnitude | (byte << 8 & 0x8000)
  const __m512i all = _mm512_ternarylogic_epi32(
      magnitude, _mm512_slli_epi16(byte, 8), _mm512_set1_epi16(static_cast<int16_t>(0x8000)), 0xf8);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(all, 16)),
          _mm512_castsi512_ps(_mm512_and_si512(all, _mm512_set1_epi32(0xffff0000)))};
}
template <>
constexpr bool kPairInterleaves<Float8E4M3> = true;
inline VecPair load_pair(const Float8E4M3* p) { return look_up_pair(p); }
// Both halves at once, where one by one each would take as many instructions.
inline VecPair load_pair(const Float8E5M2* p) {
  const __m512i half = halves_of(p);
  return {_mm512_cvtph_ps(_mm512_castsi512_si256(half)),
          _mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1))};
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
#if defined(__AVX512F__)
inline VecPair part_pair(VecPair x) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  return {_mm512_permutex2var_ps(x.a, even, x.b), _mm512_permutex2var_ps(x.a, odd, x.b)};
}
inline VecPair join_pair(VecPair x) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  return {_mm512_permutex2var_ps(x.a, low, x.b), _mm512_permutex2var_ps(x.a, high, x.b)};
}
#elif defined(__AVX2__)
inline VecPair part_pair(VecPair x) {
  auto in_order = [](Vec y) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(y), 0xd8));
  };
  return {in_order(_mm256_shuffle_ps(x.a, x.b, 0x88)), in_order(_mm256_shuffle_ps(x.a, x.b, 0xdd))};
}
inline VecPair join_pair(VecPair x) {
  const Vec low = _mm256_unpacklo_ps(x.a, x.b), high = _mm256_unpackhi_ps(x.a, x.b);
  return {_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31)};
}
#endif
template <class T>
inline void reorder_pairs([[maybe_unused]] float* row, [[maybe_unused]] int dim,
                          [[maybe_unused]] bool back) {
#if defined(__AVX2__)
  if (!kPairInterleaves<T>) return;
  for (int d = 0; d + 2 * kLanes <= dim; d += 2 * kLanes) {
    const VecPair x = load_pair(row + d), y = back ? join_pair(x) : part_pair(x);
    store(row + d, y.a);
    store(row + d + kLanes, y.b);
  }
#endif
}

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

// Asks for elements [begin, begin + count) of a row, into the second-level cache: the first one has
// no room for two blocks, and loading into both is slower.
template <class T>
inline void prefetch_part(const T* row, int begin, int count) {
  constexpr int kLine = 64 / sizeof(T), kSecondLevel = 2;
  for (int i = (begin + kLine - 1) / kLine * kLine; i < begin + count; i += kLine) {
    __builtin_prefetch(row + i, 0, kSecondLevel);
  }
}

// scores[r][i] = q[r] . k[i] for R rows and the keys of a block.
template <int R, class T>
inline void dot_scores(const Block& block, int dim, const float* q, float* scores) {
  constexpr int kKeys = kDotScores / R;
  const int n = block.now.keys;
  for (int i = 0; i < n; i += kKeys) {
    const T* key[kKeys];
    for (int j = 0; j < kKeys; ++j) {
      // Past the last key the last one is repeated; those scores are not read.
      key[j] = block.now.key<T>(i + j < n ? i + j : n - 1);
      if (i + j < block.next.keys) prefetch_part(block.next.key<T>(i + j), 0, dim);
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
        Vec* sum = acc + r * kKeys;
#pragma GCC unroll 16
        for (int j = 0; j < kKeys; ++j) sum[j] = fma(query.a, operand[j].a, sum[j]);
#pragma GCC unroll 16
        for (int j = 0; j < kKeys; ++j) sum[j] = fma(query.b, operand[j].b, sum[j]);
      }
    }
    if (d < dim) {
      for (int r = 0; r < R; ++r) {
        for (int j = 0; j < kKeys; ++j) {
          acc[r * kKeys + j] = fma(load(q + r * dim + d), load(key[j] + d), acc[r * kKeys + j]);
        }
      }
    }
    constexpr int kSet = R * kKeys;
    float* to = scores + i / kSet * kSet;
    put_scores<R>(acc, i % kSet / kKeys, to);
    if (i + kKeys >= n || (i + kKeys) % kSet == 0) order_scores<R>(to);
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
  for (int i = 0; i < block.now.keys; ++i) {
    const T* value = block.now.value<T>(i) + offset;
    if (i < block.next.keys) prefetch_part(block.next.value<T>(i), offset, NV * kLanes);
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

}  // namespace mainboard::cpu::MAINBOARD_ISA
