// How stored elements become operands of decode's products in float32.
#pragma once

#include <type_traits>

#include "csrc/cpu/halves.h"

namespace mainboard::cpu::MAINBOARD_ISA {

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
inline VecPair widen_halves(__m512i halves) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(halves, 16)),
          _mm512_castsi512_ps(_mm512_and_si512(halves, _mm512_set1_epi32(0xffff0000)))};
}
inline VecPair load_pair(const BFloat16* p) { return widen_halves(_mm512_loadu_si512(p)); }
template <>
constexpr bool kPairInterleaves<Float8E4M3> = true;
inline VecPair load_pair(const Float8E4M3* p) { return widen_halves(look_up_halves(p)); }
// Both halves at once, where one by one each would take as many instructions.
inline VecPair load_pair(const Float8E5M2* p) {
  const __m512i half = halves_of(p);
  return {_mm512_cvtph_ps(_mm512_castsi512_si256(half)),
          _mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1))};
}
// Whether 64 elements are looked up at once, as bfloat16. For e5m2 and int8 that is slower than the
// processor's own conversions.
template <class T>
constexpr bool kLooksUp = std::is_same_v<T, Float8E4M3>;
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

}  // namespace mainboard::cpu::MAINBOARD_ISA
