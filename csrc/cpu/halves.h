// Elements of one byte as bfloat16, which holds each of them exactly. AVX-512.
#pragma once

#include "csrc/cpu/vec.h"

#if defined(__AVX512F__)

namespace mainboard::cpu::MAINBOARD_ISA {

// A byte less its sign has 128 values. The tables are made by the compiler: whatever runs when the
// library is loaded would run on processors without these instructions too.
template <class T>
struct HalvesOfBytes {
  alignas(64) uint16_t bits[128] = {};
  alignas(64) uint8_t high[128] = {};
  alignas(64) uint8_t low[128] = {};
  constexpr HalvesOfBytes() {
    for (uint32_t i = 0; i < 128; ++i) {
      bits[i] = T::Format::bfloat16(i);
      high[i] = static_cast<uint8_t>(bits[i] >> 8);
      low[i] = static_cast<uint8_t>(bits[i]);
    }
  }
};
template <class T>
static constexpr HalvesOfBytes<T> halves_of_bytes{};

// 64 bfloat16, in order where nothing else is said.
struct Halves {
  __m512i low, high;
};

// 32 float8 as bfloat16, in order.
template <class T>
inline __m512i look_up_halves(const T* p) {
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
  return _mm512_ternarylogic_epi32(magnitude, _mm512_slli_epi16(byte, 8),
                                   _mm512_set1_epi16(static_cast<int16_t>(0x8000)), 0xf8);
}

#if defined(__AVX512VBMI__)

// Bytes in the order in which unpacking them with others, 8 by 8, gives words in order.
inline __m512i order_to_unpack(__m512i bytes) {
  return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), bytes);
}
// Both bytes of each magnitude's bfloat16, and the sign of `bytes`.
template <class T>
inline Halves look_up_halves(__m512i magnitudes, __m512i bytes) {
  const HalvesOfBytes<T>& table = halves_of_bytes<T>;
  const __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(table.high), magnitudes,
                                                _mm512_load_si512(table.high + 64));
  const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(table.low), magnitudes,
                                               _mm512_load_si512(table.low + 64));
  // high | (bytes & 0x80)
  const __m512i signed_high =
      _mm512_ternarylogic_epi32(high, bytes, _mm512_set1_epi8(static_cast<char>(0x80)), 0xf8);
  return {low, signed_high};
}
inline Halves unpack_halves(Halves bytes) {
  return {_mm512_unpacklo_epi8(bytes.low, bytes.high), _mm512_unpackhi_epi8(bytes.low, bytes.high)};
}
// The bytes of 64 elements' bfloat16.
template <class T>
inline Halves look_up_bytes(T, __m512i bytes) {
  return look_up_halves<T>(bytes, bytes);
}
inline Halves look_up_bytes(Int8, __m512i bytes) {
  const __m512i magnitudes = _mm512_abs_epi8(bytes);
  Halves halves = look_up_halves<Int8>(magnitudes, bytes);
  // -128 has no magnitude of seven bits, and was taken for -0; its bfloat16 is 0xc300.
  halves.high = _mm512_mask_mov_epi8(halves.high, _mm512_movepi8_mask(magnitudes),
                                     _mm512_set1_epi8(static_cast<char>(0xc3)));
  return halves;
}
template <class T>
inline Halves halves_of(T type, __m512i raw) {
  return unpack_halves(look_up_bytes(type, order_to_unpack(raw)));
}
// The same without the effort to keep them in order: of each 16 elements, `low` has the first eight
// and `high` the others.
template <class T>
inline Halves parted_halves_of(T type, __m512i raw) {
  return unpack_halves(look_up_bytes(type, raw));
}

// 64 elements, or the first `count` of them and zeros, which are not read.
template <class T>
inline Halves load_halves(const T* p) {
  return halves_of(T{}, _mm512_loadu_si512(p));
}
template <class T>
inline Halves load_halves(const T* p, int count) {
  return halves_of(T{}, _mm512_maskz_loadu_epi8(~uint64_t{0} >> (64 - count), p));
}
inline Halves load_halves(const BFloat16* p) {
  return {_mm512_loadu_si512(p), _mm512_loadu_si512(p + 32)};
}
inline Halves load_halves(const BFloat16* p, int count) {
  const uint64_t there = ~uint64_t{0} >> (64 - count);
  return {_mm512_maskz_loadu_epi16(static_cast<__mmask32>(there), p),
          _mm512_maskz_loadu_epi16(static_cast<__mmask32>(there >> 32), p + 32)};
}

#endif  // __AVX512VBMI__

}  // namespace mainboard::cpu::MAINBOARD_ISA

#endif  // __AVX512F__
