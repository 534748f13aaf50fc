// Attention for a few query rows in pairs of bfloat16, where the processor multiplies those faster
// than float32: scores in pairs along the head dimension, outputs in pairs of keys.
//
// Products are exact and sums are float32; only the softmax's weights are rounded. What is stored
// in one byte is looked up as bfloat16.
#pragma once

#include "csrc/cpu/dot.h"
#include "csrc/cpu/formats.h"

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)

namespace mainboard::cpu::MAINBOARD_ISA {

constexpr int kGroup = 64;  // elements of a row that are read together
constexpr int kGroupVecs = kGroup / kLanes;

inline int64_t whole_groups(int64_t dim) { return (dim + kGroup - 1) / kGroup * kGroup; }

inline Vec add_pairs(__m512i a, __m512i b, Vec sum) {
  return BFloat16Pairs::multiply(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
}

// acc[r][j] += q[r] * k[j] for R rows and kDotScores / R keys over a group; of keys, `count`
// elements are read.
template <int R, bool Whole, class T>
inline void add_pair_products(const KeyPointers<kDotScores / R, T>& key, int d, int count,
                              const BFloat16* q, int64_t room, Vec* acc) {
  constexpr int kKeys = kDotScores / R;
  key.template prefetch<kGroup>(d);
#pragma GCC unroll 16
  for (int j = 0; j < kKeys; ++j) {
    const Halves k = Whole ? load_halves(key.now[j] + d) : load_halves(key.now[j] + d, count);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Halves query = load_halves(q + r * room + d);
      Vec* sum = acc + r * kKeys + j;
      *sum = add_pairs(query.low, k.low, *sum);
      *sum = add_pairs(query.high, k.high, *sum);
    }
  }
}

// scores[r][i] = scale * q[r] . k[i] for R rows, `room` elements apart, and the keys of a block.
template <int R, class T>
inline void dot_pairs(const Block& block, int dim, const BFloat16* q, float scale, float* scores) {
  constexpr int kKeys = kDotScores / R;
  const int64_t room = whole_groups(dim);
  const int n = block.now.keys;
  for (int i = 0; i < n; i += kKeys) {
    const KeyPointers<kKeys, T> key(block, i);
    Vec acc[kDotScores];
#pragma GCC unroll 16
    for (int j = 0; j < kDotScores; ++j) acc[j] = zero();
    int d = 0;
    for (; d + kGroup <= dim; d += kGroup) {
      add_pair_products<R, true, T>(key, d, kGroup, q, room, acc);
    }
    if (d < dim) add_pair_products<R, false, T>(key, d, dim - d, q, room, acc);
    constexpr int kSet = R * kKeys;
    float* to = scores + i / kSet * kSet;
    store(to + i % kSet / kKeys * kDotKeys, reduce_scores(acc) * set1(scale));
    if (i + kKeys >= n || (i + kKeys) % kSet == 0) order_scores<R>(to);
  }
}

// Rounds R rows' weights to bfloat16, in place: a word for each two keys.
template <int R>
inline void pair_weights(int keys, float* weights) {
  for (int r = 0; r < R; ++r) {
    float* row = weights + r * kDotKeys;
    for (int i = 0; i < keys; i += 2 * kLanes) {
      const __m512bh both = _mm512_cvtne2ps_pbh(load(row + i + kLanes), load(row + i));
      _mm512_storeu_si512(row + i / 2, (__m512i)both);
    }
  }
}

// Two keys' values, element by element side by side; a missing second one is zero.
template <bool Whole, class T>
inline void pair_values_of(const T* first, const T* second, int count, __m512i* to) {
  const Halves a = Whole ? load_halves(first) : load_halves(first, count);
  Halves b = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  if (second != nullptr) b = Whole ? load_halves(second) : load_halves(second, count);
  to[0] = _mm512_unpacklo_epi16(a.low, b.low);
  to[1] = _mm512_unpackhi_epi16(a.low, b.low);
  to[2] = _mm512_unpacklo_epi16(a.high, b.high);
  to[3] = _mm512_unpackhi_epi16(a.high, b.high);
}

// o[r] = o[r] * keep[r] + sum_i weights[r][i] v[i] over some groups of the value dimension, whose
// elements lie in the order that pair_values_of gives.
template <int R, int Groups, bool Whole, class T>
inline void add_pair_values(const Block& block, int offset, int count, const float* weights,
                            const float* keep, float* o, int64_t room) {
  constexpr int kVecs = Groups * kGroupVecs;
  Vec acc[R][kVecs];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) {
      acc[r][j] = load(o + r * room + offset + j * kLanes) * set1(keep[r]);
    }
  }
  const int n = block.now.keys, ahead = block.next.keys;
  for (int i = 0; i < n; i += 2) {
    const T* first = block.now.value<T>(i) + offset;
    const T* second = i + 1 < n ? block.now.value<T>(i + 1) + offset : nullptr;
    if (i < ahead) prefetch_part<Groups * kGroup>(block.next.value<T>(i) + offset);
    if (i + 1 < ahead) prefetch_part<Groups * kGroup>(block.next.value<T>(i + 1) + offset);
    __m512i operand[kVecs];
#pragma GCC unroll 2
    for (int g = 0; g < Groups; ++g) {
      const int at = g * kGroup;
      pair_values_of<Whole>(first + at, second == nullptr ? second : second + at, count,
                            operand + g * kGroupVecs);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const __m512i weight = _mm512_castps_si512(set1(weights[r * kDotKeys + i / 2]));
#pragma GCC unroll 8
      for (int j = 0; j < kVecs; ++j) acc[r][j] = add_pairs(operand[j], weight, acc[r][j]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) store(o + r * room + offset + j * kLanes, acc[r][j]);
  }
}

template <int R, class T>
inline void add_pair_values(const Block& block, const float* weights, const float* keep, float* o,
                            int dim) {
  constexpr int kGroups = R > 2 ? 1 : 2;
  const int64_t room = whole_groups(dim);
  int offset = 0;
  for (; offset + kGroups * kGroup <= dim; offset += kGroups * kGroup) {
    add_pair_values<R, kGroups, true, T>(block, offset, kGroup, weights, keep, o, room);
  }
  for (; offset + kGroup <= dim; offset += kGroup) {
    add_pair_values<R, 1, true, T>(block, offset, kGroup, weights, keep, o, room);
  }
  if (offset < dim) {
    add_pair_values<R, 1, false, T>(block, offset, dim - offset, weights, keep, o, room);
  }
}

// Puts a row of outputs in order.
inline void part_values(float* row, int dim) {
  const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  for (int d = 0; d < dim; d += 2 * kLanes) {
    const Vec a = load(row + d), b = load(row + d + kLanes);
    store(row + d, _mm512_permutex2var_ps(a, low, b));
    store(row + d + kLanes, _mm512_permutex2var_ps(a, high, b));
  }
}

// How decode multiplies rows of bfloat16 against keys and values of T (decode.h).
template <class T>
struct PairMath {
  using Query = BFloat16;
  static int64_t query_room(int64_t dim) { return whole_groups(dim); }
  static int64_t output_room(int64_t dim) { return whole_groups(dim); }

  static void begin(const Attention& a, const char* from, float, BFloat16* q) {
    std::memset(q, 0, sizeof(BFloat16) * query_room(a.head_dim));
    std::memcpy(q, from, sizeof(BFloat16) * a.head_dim);
  }
  static void finish(float* o, int dim) { part_values(o, dim); }

  template <int R>
  static void dot(const Block& block, int dim, const BFloat16* q, float scale, float* scores) {
    dot_pairs<R, T>(block, dim, q, scale, scores);
  }
  template <int R>
  static void add(const Block& block, float* weights, const float* keep, float* o, int dim) {
    pair_weights<R>(block.now.keys, weights);
    add_pair_values<R, T>(block, weights, keep, o, dim);
  }
};

inline bool pairs_serve(const Attention& a) {
  return a.q.dtype == DType::bf16 && a.k.dtype == a.v.dtype && BFloat16Pairs::holds(a.k.dtype);
}

}  // namespace mainboard::cpu::MAINBOARD_ISA

#endif  // __AVX512BF16__ && __AVX512VBMI__
