// The words that the tiled products multiply, and how rows become words.
#pragma once

#include "csrc/cpu/rows.h"
#include "csrc/cpu/transpose.h"

namespace mainboard::cpu::MAINBOARD_ISA {

// One float32 a word.
struct Float32Words {
  static constexpr int kPack = 1;               // elements in a word
  static constexpr int kExponentialPowers = 5;  // of the softmax
  static constexpr bool kScalesQueries = true;  // queries carry the softmax's scale
  static int64_t words(int64_t n) { return n; }

  static Vec multiply(Vec a, Vec b, Vec sum) { return fma(a, b, sum); }
  static Vec pack(const Vec* e) { return e[0]; }

  // kLanes rows of n elements into the lanes of `to`, whose lines are `stride` floats apart.
  static void load_queries(DType dtype, const char* const* rows, float scale, int n, float* to,
                           int64_t stride) {
    const Vec factor = set1(scale);
    with_type(dtype, [&](auto* type) {
      const auto row = [&](int i) {
        return reinterpret_cast<decltype(type)>(const_cast<char*>(rows[i]));
      };
      for (int d = 0; d < n; d += kLanes) {
        transpose(
            [&](int i) {
              return (n - d >= kLanes ? load(row(i) + d) : load_partial(row(i) + d, n - d)) *
                     factor;
            },
            [&](int j, Vec x) { store(to + (d + j) * stride, x); });
      }
    });
  }
  static void load_keys(DType dtype, const char* const* rows, int count, int n, float* to) {
    with_type(dtype, [&](auto* type) {
      for (int i = 0; i < count; ++i) {
        widen(reinterpret_cast<decltype(type)>(const_cast<char*>(rows[i])), to + i * n, n);
      }
    });
  }
  static void load_values(DType dtype, const char* const* rows, int count, int n, float*,
                          float* to) {
    load_keys(dtype, rows, count, n, to);
  }
};

#if defined(__AVX512BF16__)

// Two bfloat16 a word, multiplied exactly and summed in float32. Nothing is lost by it but the last
// bits of the softmax's weights: what is stored in 8 bits fits into a bfloat16.
struct BFloat16Pairs {
  static constexpr int kPack = 2;
  static constexpr int kExponentialPowers = 4;   // its error is 1/700 of a weight's rounding
  static constexpr bool kScalesQueries = false;  // a scaled query would have to be rounded
  static int64_t words(int64_t n) { return (n + 1) / 2; }
  static bool holds(DType dtype) { return dtype == DType::bf16 || size_of(dtype) == 1; }

  static Vec multiply(Vec a, Vec b, Vec sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_castps_si512(a),
                            (__m512bh)_mm512_castps_si512(b));
  }
  static Vec pack(const Vec* e) {
    const __m512i order =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(e[1], e[0]);
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, halves));
  }

  // A row as it is stored, or as bfloat16; behind an odd one lies a zero.
  static void load_row(DType dtype, const char* from, float* to, int n) {
    BFloat16* half = reinterpret_cast<BFloat16*>(to);
    if (dtype == DType::bf16) {
      std::memcpy(half, from, n * sizeof(BFloat16));
    } else {
      with_type(dtype, [&](auto* type) {
        const auto* stored = reinterpret_cast<decltype(type)>(const_cast<char*>(from));
        int i = 0;
        for (; i + kLanes <= n; i += kLanes) store(half + i, load(stored + i));
        if (i < n) store_partial(half + i, load_partial(stored + i, n - i), n - i);
      });
    }
    if (n % 2 != 0) half[n] = {0};
  }
  // As above, the rows being bfloat16: none is scaled.
  static void load_queries(DType, const char* const* rows, float, int n, float* to,
                           int64_t stride) {
    for (int d = 0; d < n; d += 2 * kLanes) {
      const int64_t offset = d * static_cast<int64_t>(sizeof(BFloat16));
      const int here = n - d < 2 * kLanes ? n - d : 2 * kLanes;
      const __mmask32 in = static_cast<__mmask32>((uint64_t{1} << here) - 1);
      transpose(
          [&](int i) {
            return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(in, rows[i] + offset));
          },
          [&](int j, Vec x) { store(to + (d / 2 + j) * stride, x); });
    }
  }
  static void load_keys(DType dtype, const char* const* rows, int count, int n, float* to) {
    for (int i = 0; i < count; ++i) load_row(dtype, rows[i], to + i * words(n), n);
  }

  // Two keys' values in each word. `line` holds two rows meanwhile.
  static void load_values(DType dtype, const char* const* rows, int count, int n, float* line,
                          float* to) {
    const __m512i zeros = _mm512_setzero_si512();
    float* second = line + words(n) + 1;
    for (int i = 0; i < count; i += 2, to += n) {
      const bool both = i + 1 < count;
      const char *upper = rows[i], *lower = both ? rows[i + 1] : nullptr;
      if (dtype != DType::bf16) {
        load_row(dtype, upper, line, n);
        if (both) load_row(dtype, lower, second, n);
        upper = reinterpret_cast<const char*>(line);
        lower = both ? reinterpret_cast<const char*>(second) : nullptr;
      }
      const BFloat16* a = reinterpret_cast<const BFloat16*>(upper);
      const BFloat16* b = reinterpret_cast<const BFloat16*>(lower);
      for (int d = 0; d < n; d += kLanes) {
        const __mmask16 in = static_cast<__mmask16>(n - d < kLanes ? (1u << (n - d)) - 1 : 0xffff);
        const __m512i first = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(in, a + d));
        const __m512i next =
            both ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(in, b + d)) : zeros;
        _mm512_mask_storeu_epi32(to + d, in, _mm512_or_si512(first, _mm512_slli_epi32(next, 16)));
      }
    }
  }
};

#endif

}  // namespace mainboard::cpu::MAINBOARD_ISA
