// Rows of one byte an element as bfloat16, which holds every number of these formats.
#pragma once

#include "csrc/cpu/rows.h"

#if defined(__AMX_BF16__)

namespace mainboard::cpu::MAINBOARD_ISA {

// 64 elements, in order.
struct Halves64 {
  __m512i low, high;
};

// One byte less its sign has 128 values. Both bytes of their bfloat16, each in two registers.
template <class T>
struct BytesOfHalves {
  alignas(64) uint8_t upper[128], lower[128];
  BytesOfHalves() {
    for (int i = 0; i < 128; ++i) {
      const float x = T{static_cast<uint8_t>(i)}.to_float();
      const uint16_t bits = BFloat16::from_float(x).bits;
      upper[i] = static_cast<uint8_t>(bits >> 8);
      lower[i] = static_cast<uint8_t>(bits);
    }
  }
  static const BytesOfHalves& get() {
    static const BytesOfHalves table;
    return table;
  }
};

template <class T>
struct ToHalves {
  const BytesOfHalves<T>& table = BytesOfHalves<T>::get();

  MAINBOARD_INLINE Halves64 operator()(__m512i raw) const {
    // So that interleaving the halves of each 128 bits leaves elements in order.
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    const __m512i byte = _mm512_permutexvar_epi64(order, raw);
    auto look_up = [&](const uint8_t* bytes) __attribute__((always_inline)) {
      return _mm512_permutex2var_epi8(_mm512_load_si512(bytes), byte,
                                      _mm512_load_si512(bytes + 64));
    };
    constexpr int kWithSign = 0xf8;  // upper | (byte & 0x80)
    const __m512i upper = _mm512_ternarylogic_epi32(
        look_up(table.upper), byte, _mm512_set1_epi8(static_cast<char>(0x80)), kWithSign);
    const __m512i lower = look_up(table.lower);
    return {_mm512_unpacklo_epi8(lower, upper), _mm512_unpackhi_epi8(lower, upper)};
  }
};

template <>
struct ToHalves<BFloat16> {};

template <>
struct ToHalves<Int8> {
  // Eight bits are what a bfloat16 holds, so the upper half of the float32 is all of it.
  static MAINBOARD_INLINE __m512i halves(__m256i raw) {
    const __m512i word = _mm512_cvtepi8_epi16(raw);
    const __m512i even = _mm512_srai_epi32(_mm512_slli_epi32(word, 16), 16);
    const __m512i low = _mm512_castps_si512(_mm512_cvtepi32_ps(even));
    const __m512i high = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_srai_epi32(word, 16)));
    return _mm512_mask_mov_epi16(_mm512_srli_epi32(low, 16), 0xaaaaaaaa, high);
  }
  MAINBOARD_INLINE Halves64 operator()(__m512i raw) const {
    return {halves(_mm512_castsi512_si256(raw)), halves(_mm512_extracti64x4_epi64(raw, 1))};
  }
};

// 64 elements, or 32.
template <class T>
MAINBOARD_INLINE Halves64 load_halves(const ToHalves<T>& convert, const char* from, bool more) {
  if (more) return convert(_mm512_loadu_si512(from));
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return convert(_mm512_castsi256_si512(half));
}

// A row of n elements, n a multiple of 32.
template <class T>
MAINBOARD_INLINE void halve_row(const ToHalves<T>& convert, const char* from, char* to, int n) {
  for (int i = 0; i < n; i += 64) {
    const bool more = i + 64 <= n;
    const Halves64 x = load_halves(convert, from + i, more);
    _mm512_storeu_si512(to + 2 * i, x.low);
    if (more) _mm512_storeu_si512(to + 2 * i + 64, x.high);
  }
}

}  // namespace mainboard::cpu::MAINBOARD_ISA

#endif  // __AMX_BF16__
