// Transposing a square of kLanes times kLanes float32, or of any other 32 bits, on its way from
// where it is stored to where it is wanted.
#pragma once

#include "csrc/cpu/vec.h"

namespace mainboard::cpu::MAINBOARD_ISA {

inline int64_t whole_vecs(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

#if defined(__AVX512F__)

// `to(j, column j)` for every column of the square whose row i is `from(i)`.
template <class From, class To>
inline void transpose(From from, To to) {
  __m512 a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = from(i);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {  // pairs of rows
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // fours: a[i + c] holds column c of each 128 bits
    a[i] = _mm512_shuffle_ps(b[i], b[i + 2], 0x44);
    a[i + 1] = _mm512_shuffle_ps(b[i], b[i + 2], 0xee);
    a[i + 2] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0x44);
    a[i + 3] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {  // and the 128 bits themselves
    const __m512 low = _mm512_shuffle_f32x4(a[c], a[4 + c], 0x88);
    const __m512 odd_low = _mm512_shuffle_f32x4(a[c], a[4 + c], 0xdd);
    const __m512 high = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0x88);
    const __m512 odd_high = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0xdd);
    to(c, _mm512_shuffle_f32x4(low, high, 0x88));
    to(4 + c, _mm512_shuffle_f32x4(odd_low, odd_high, 0x88));
    to(8 + c, _mm512_shuffle_f32x4(low, high, 0xdd));
    to(12 + c, _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd));
  }
}

#elif defined(__AVX2__)

template <class From, class To>
inline void transpose(From from, To to) {
  __m256 a[8], b[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // rows i and i + 4, by their halves of four columns
    const __m256 upper = from(i), lower = from(i + 4);
    a[i] = _mm256_permute2f128_ps(upper, lower, 0x20);
    a[4 + i] = _mm256_permute2f128_ps(upper, lower, 0x31);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    b[i + 2] = _mm256_unpacklo_ps(a[i + 2], a[i + 3]);
    b[i + 3] = _mm256_unpackhi_ps(a[i + 2], a[i + 3]);
    to(i, _mm256_shuffle_ps(b[i], b[i + 2], 0x44));
    to(i + 1, _mm256_shuffle_ps(b[i], b[i + 2], 0xee));
    to(i + 2, _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44));
    to(i + 3, _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee));
  }
}

#else

template <class From, class To>
inline void transpose(From from, To to) {
  float row[kLanes][kLanes], column[kLanes];
  for (int i = 0; i < kLanes; ++i) store(row[i], from(i));
  for (int j = 0; j < kLanes; ++j) {
    for (int i = 0; i < kLanes; ++i) column[i] = row[i][j];
    to(j, load(column));
  }
}

#endif

}  // namespace mainboard::cpu::MAINBOARD_ISA
