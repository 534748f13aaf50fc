// One vector of float32 and the operations the kernels need, for the instruction set that this
// translation unit is compiled for. Everything above this file is written once.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "csrc/cpu/scalar_types.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace mainboard::cpu::MAINBOARD_ISA {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)

using Vec = __m512;
constexpr int kLanes = 16;

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec set1(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec abs(Vec a) { return _mm512_abs_ps(a); }
// 2^n for a float whose lowest bits are n + 127.
inline Vec power_of_two(Vec biased) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(biased), 23));
}
// Where a <= b, x; elsewhere y.
inline Vec select_le(Vec a, Vec b, Vec x, Vec y) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LE_OQ), y, x);
}
inline float reduce_max(Vec a) { return _mm512_reduce_max_ps(a); }
inline float reduce_add(Vec a) { return _mm512_reduce_add_ps(a); }
inline __m256 fold(Vec a) {
  return _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
}

inline Vec load(const BFloat16* p) {
  __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}
inline Vec load(const Float16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Vec load(const Float8E5M2* p) {  // the upper half of a float16
  __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(raw), 8));
}
// A float16 whose exponent is 8 too small; all ones become NaN.
inline Vec load(const Float8E4M3* p) {
  __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m256i half = _mm256_and_si256(_mm256_slli_epi16(_mm256_cvtepi8_epi16(raw), 7),
                                        _mm256_set1_epi16(static_cast<int16_t>(0xbf80)));
  // One more unit carries all ones, and nothing else, into the bit above: half | (carried & bit).
  const __m256i carried = _mm256_add_epi16(half, _mm256_set1_epi16(0x80));
  const __m256i all = _mm256_ternarylogic_epi32(half, carried, _mm256_set1_epi16(0x4000), 0xf8);
  return _mm512_mul_ps(_mm512_cvtph_ps(all), _mm512_set1_ps(256.0f));
}
// The float16 of the same, for two vectors at once.
inline __m512i halves_of(const Float8E5M2* p) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_slli_epi16(_mm512_cvtepu8_epi16(raw), 8);
}
inline __m512i halves_of(const Float8E4M3* p) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m512i half = _mm512_and_si512(_mm512_slli_epi16(_mm512_cvtepi8_epi16(raw), 7),
                                        _mm512_set1_epi16(static_cast<int16_t>(0xbf80)));
  const __m512i carried = _mm512_add_epi16(half, _mm512_set1_epi16(0x80));
  return _mm512_ternarylogic_epi32(half, carried, _mm512_set1_epi16(0x4000), 0xf8);
}
inline Vec load(const Int8* p) {
  __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(raw));
}
inline void store(Float16* p, Vec x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store(BFloat16* p, Vec x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(
      _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i result = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(result));
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

using Vec = __m256;
constexpr int kLanes = 8;

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec set1(float x) { return _mm256_set1_ps(x); }
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec abs(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
// 2^n for a float whose lowest bits are n + 127.
inline Vec power_of_two(Vec biased) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(biased), 23));
}
// Where a <= b, x; elsewhere y.
inline Vec select_le(Vec a, Vec b, Vec x, Vec y) {
  return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LE_OQ));
}
inline __m256 fold(Vec a) { return a; }
inline float reduce_max(Vec a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
inline float reduce_add(Vec a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

inline Vec load(const BFloat16* p) {
  __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}
inline Vec load(const Float16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Vec load(const Float8E5M2* p) {  // the upper half of a float16
  __m128i raw = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm256_cvtph_ps(_mm_slli_epi16(_mm_cvtepu8_epi16(raw), 8));
}
// A float16 whose exponent is 8 too small; all ones become NaN.
inline Vec load(const Float8E4M3* p) {
  __m128i raw = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  const __m128i top = _mm_set1_epi16(0x3f80);
  const __m128i half = _mm_and_si128(_mm_slli_epi16(_mm_cvtepi8_epi16(raw), 7),
                                     _mm_set1_epi16(static_cast<int16_t>(0xbf80)));
  const __m128i nan = _mm_cmpeq_epi16(_mm_and_si128(half, top), top);
  return _mm256_mul_ps(_mm256_cvtph_ps(_mm_or_si128(half, nan)), _mm256_set1_ps(256.0f));
}
inline Vec load(const Int8* p) {
  __m128i raw = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(raw));
}
inline void store(Float16* p, Vec x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store(BFloat16* p, Vec x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(
      _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i result = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(p),
      _mm_packus_epi32(_mm256_castsi256_si128(result), _mm256_extracti128_si256(result, 1)));
}

#elif defined(__aarch64__) && !defined(MAINBOARD_PLAIN_VECTORS)

using Vec = float32x4_t;
constexpr int kLanes = 4;

inline Vec zero() { return vdupq_n_f32(0.0f); }
inline Vec set1(float x) { return vdupq_n_f32(x); }
inline Vec load(const float* p) { return vld1q_f32(p); }
inline void store(float* p, Vec x) { vst1q_f32(p, x); }
inline Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
inline Vec max(Vec a, Vec b) { return vmaxq_f32(a, b); }
inline Vec abs(Vec a) { return vabsq_f32(a); }
// 2^n for a float whose lowest bits are n + 127.
inline Vec power_of_two(Vec biased) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_f32(biased), 23));
}
// Where a <= b, x; elsewhere y.
inline Vec select_le(Vec a, Vec b, Vec x, Vec y) { return vbslq_f32(vcleq_f32(a, b), x, y); }
inline float reduce_max(Vec a) { return vmaxvq_f32(a); }
inline float reduce_add(Vec a) { return vaddvq_f32(a); }

inline Vec load(const BFloat16* p) {
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(&p->bits), 16));
}
inline Vec load(const Float16* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits))); }
// Four bytes, and no more, in the lower half.
inline uint8x8_t load_bytes(const void* p) {
  uint32_t raw;
  std::memcpy(&raw, p, sizeof raw);
  return vreinterpret_u8_u32(vdup_n_u32(raw));
}
inline Vec load(const Float8E5M2* p) {  // the upper half of a float16
  const uint16x4_t half = vget_low_u16(vshll_n_u8(load_bytes(p), 8));
  return vcvt_f32_f16(vreinterpret_f16_u16(half));
}
// A float16 whose exponent is 8 too small; all ones become NaN.
inline Vec load(const Float8E4M3* p) {
  const int16x4_t wide = vget_low_s16(vmovl_s8(vreinterpret_s8_u8(load_bytes(p))));
  const uint16x4_t top = vdup_n_u16(0x3f80);
  const uint16x4_t half = vand_u16(vreinterpret_u16_s16(vshl_n_s16(wide, 7)), vdup_n_u16(0xbf80));
  const uint16x4_t nan = vceq_u16(vand_u16(half, top), top);
  return vmulq_n_f32(vcvt_f32_f16(vreinterpret_f16_u16(vorr_u16(half, nan))), 256.0f);
}
inline Vec load(const Int8* p) {
  const int16x4_t wide = vget_low_s16(vmovl_s8(vreinterpret_s8_u8(load_bytes(p))));
  return vcvtq_f32_s32(vmovl_s16(wide));
}
inline void store(Float16* p, Vec x) { vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32(x))); }
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
inline void store(BFloat16* p, Vec x) {
  const bfloat16x4_t rounded = vcvt_bf16_f32(x);
  std::memcpy(p, &rounded, sizeof rounded);
}
#else
inline void store(BFloat16* p, Vec x) {
  const uint32x4_t bits = vreinterpretq_u32_f32(x);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint16x4_t rounded = vshrn_n_u32(vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
  const uint16x4_t number = vmovn_u32(vceqq_f32(x, x));
  vst1_u16(&p->bits, vbsl_u16(number, rounded, vdup_n_u16(0x7fc0)));
}
#endif

#else  // Any other processor: the compiler's own 128-bit vectors.

typedef float Vec __attribute__((vector_size(16)));
typedef int32_t IntVec __attribute__((vector_size(16)));
constexpr int kLanes = 4;

inline Vec zero() { return Vec{}; }
inline Vec set1(float x) { return Vec{x, x, x, x}; }
inline Vec load(const float* p) {
  Vec x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline void store(float* p, Vec x) { std::memcpy(p, &x, sizeof x); }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec abs(Vec a) { return a < 0.0f ? -a : a; }
// 2^n for a float whose lowest bits are n + 127.
inline Vec power_of_two(Vec biased) {
  IntVec bits;
  std::memcpy(&bits, &biased, sizeof bits);
  bits <<= 23;
  Vec factor;
  std::memcpy(&factor, &bits, sizeof factor);
  return factor;
}
inline Vec select_le(Vec a, Vec b, Vec x, Vec y) { return a <= b ? x : y; }
inline float reduce_max(Vec a) { return std::fmax(std::fmax(a[0], a[1]), std::fmax(a[2], a[3])); }
inline float reduce_add(Vec a) { return (a[0] + a[1]) + (a[2] + a[3]); }

template <class Narrow>
inline Vec load_each(const Narrow* p) {
  return Vec{p[0].to_float(), p[1].to_float(), p[2].to_float(), p[3].to_float()};
}
inline Vec load(const BFloat16* p) { return load_each(p); }
inline Vec load(const Float16* p) { return load_each(p); }
inline Vec load(const Float8E4M3* p) { return load_each(p); }
inline Vec load(const Float8E5M2* p) { return load_each(p); }
inline Vec load(const Int8* p) { return load_each(p); }
template <class Narrow>
inline void store_each(Narrow* p, Vec x) {
  for (int i = 0; i < kLanes; ++i) p[i] = Narrow::from_float(x[i]);
}
inline void store(Float16* p, Vec x) { store_each(p, x); }
inline void store(BFloat16* p, Vec x) { store_each(p, x); }

#endif

}  // namespace mainboard::cpu::MAINBOARD_ISA

#include "csrc/cpu/vec_bytes.h"

namespace mainboard::cpu::MAINBOARD_ISA {

// The elements [0, count) of p, count < kLanes, and zero behind them.
template <class T>
inline Vec load_partial(const T* p, int count) {
  T padded[kLanes] = {};
  std::memcpy(padded, p, count * sizeof(T));
  return load(padded);
}
template <class T>
inline void store_partial(T* p, Vec x, int count) {
  T padded[kLanes];
  store(padded, x);
  std::memcpy(p, padded, count * sizeof(T));
}

// Widens n elements of any type into float32.
template <class T>
inline void widen(const T* from, float* to, int n) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  if (i < n) store_partial(to + i, load_partial(from + i, n - i), n - i);
}

// Rounds n float32 elements, times a factor, into T.
template <class T>
inline void narrow(const float* from, float factor, T* to, int n) {
  const Vec f = set1(factor);
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i) * f);
  if (i < n) store_partial(to + i, load_partial(from + i, n - i) * f, n - i);
}

}  // namespace mainboard::cpu::MAINBOARD_ISA
