// Operands of the AMX kernel: queries, keys and values packed into tiles of 16 rows of 64 bytes.
//
// Parts is how many 16-bit numbers stand for one element: 1, or 2 bfloat16 (a rounded value and
// what it lacks), which hold a float16 exactly.
#pragma once

#include "csrc/cpu/rows.h"

#if defined(__AMX_BF16__)

namespace mainboard::cpu::MAINBOARD_ISA {

constexpr int kTile = 16;       // rows of a tile, and its columns of 32 bits
constexpr int kTileBytes = 64;  // one row
constexpr int kTileDims = 32;   // bfloat16 in one row
constexpr int kTileWords = kTile * kTile;
constexpr int kTilePanel = 2 * kTile;         // queries that go together
constexpr int kTileKeys = kTileDims;          // keys that go together: one tile of weights
constexpr int kKeyTiles = kTileKeys / kTile;  // their tiles as left-hand operands

// What tiles hold: the elements as they are, or each float16 as a pair of bfloat16.
enum class Operands { bfloat16, pairs, float16 };
template <Operands kOperands>
constexpr int kParts = kOperands == Operands::pairs ? 2 : 1;

// Products of float16, which processors from Granite Rapids have and gcc 12 cannot spell:
// VEX.128.F2.0F38.W0 5C. The three are numbers of tiles.
#if !defined(_tile_dpfp16ps)
#define _tile_dpfp16ps(sum, left, right)                                          \
  asm volatile(".byte 0xc4, 0xe2, %c0, 0x5c, %c1" ::"i"((15 - (right)) << 3 | 3), \
               "i"(0xc0 | (sum) << 3 | (left)))
#endif
#define MAINBOARD_MULTIPLY(operands, sum, left, right) \
  do {                                                 \
    if constexpr (operands == Operands::float16) {     \
      _tile_dpfp16ps(sum, left, right);                \
    } else {                                           \
      _tile_dpbf16ps(sum, left, right);                \
    }                                                  \
  } while (false)

// gcc 12 tells the optimiser neither that these read memory nor all that they read.
#define MAINBOARD_TILE_FENCE asm volatile("" ::: "memory")

// Eight tiles of 16 rows of 64 bytes for as long as it lives, and results too small for a normal
// number are zero: the tiles' own rule, and the vector unit would take a trap for each.
class TileSession {
 public:
  TileSession() : control_(_mm_getcsr()) {
    constexpr unsigned kFlushToZero = 0x8000;
    _mm_setcsr(control_ | kFlushToZero);
    alignas(64) uint8_t config[64] = {1};
    for (int t = 0; t < 8; ++t) {
      config[16 + 2 * t] = kTileBytes;
      config[48 + t] = kTile;
    }
    MAINBOARD_TILE_FENCE;
    _tile_loadconfig(config);
  }
  ~TileSession() {
    _mm_setcsr(control_);
    _tile_release();
  }

 private:
  unsigned control_;
};

// The transpose of a 16 x 16 matrix of 32-bit words, row by row.
inline void transpose_words(__m512i* row) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    row[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    row[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    row[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    row[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // row[4 b + c] holds column 4 l + c of rows 4 b .. 4 b + 3 in its lane l: transpose the lanes.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512i a = _mm512_shuffle_i32x4(row[c], row[4 + c], 0x88);
    const __m512i b = _mm512_shuffle_i32x4(row[c], row[4 + c], 0xdd);
    const __m512i d = _mm512_shuffle_i32x4(row[8 + c], row[12 + c], 0x88);
    const __m512i e = _mm512_shuffle_i32x4(row[8 + c], row[12 + c], 0xdd);
    t[c] = _mm512_shuffle_i32x4(a, d, 0x88);
    t[4 + c] = _mm512_shuffle_i32x4(b, e, 0x88);
    t[8 + c] = _mm512_shuffle_i32x4(a, d, 0xdd);
    t[12 + c] = _mm512_shuffle_i32x4(b, e, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) row[i] = t[i];
}

// The first columns of a tile's rows, one behind another.
inline void store_tile(const __m512i* row, int columns, uint32_t* to) {
  const auto first = static_cast<__mmask16>((1u << columns) - 1);
#pragma GCC unroll 16
  for (int i = 0; i < kTile; ++i) _mm512_mask_storeu_epi32(to + i * columns, first, row[i]);
}

inline __m512i round_both(Vec even, Vec odd) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even));
}

inline __m512i round_halves(Vec even, Vec odd) {
  const __m256i low = _mm512_cvtps_ph(even, _MM_FROUND_TO_NEAREST_INT);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low),
                            _mm512_cvtps_ph(odd, _MM_FROUND_TO_NEAREST_INT), 1);
}
alignas(64) static const uint16_t kInterleave[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                     21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                     11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
alignas(64) static const uint16_t kEvenFirst[32] = {0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20,
                                                    22, 24, 26, 28, 30, 1,  3,  5,  7,  9,  11,
                                                    13, 15, 17, 19, 21, 23, 25, 27, 29, 31};

// Pairs of weights, word by word. The processor's own rounding to bfloat16 takes twice the time of
// this, which differs from it only in that halves go away from zero.
template <Operands kOperands>
MAINBOARD_INLINE __m512i round_weights(Vec even, Vec odd) {
  if constexpr (kOperands == Operands::float16) {
    return _mm512_permutexvar_epi16(_mm512_load_si512(kInterleave), round_halves(even, odd));
  }
  const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(0xffff0000);
  const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(even), half), 16);
  const __m512i high = _mm512_add_epi32(_mm512_castps_si512(odd), half);
  constexpr int kLowOrMaskedHigh = 0xf8;
  return _mm512_ternarylogic_epi32(low, high, upper, kLowOrMaskedHigh);
}

// The upper halves of words: those of `even` go down.
MAINBOARD_INLINE __m512i join_upper(__m512i even, __m512i odd) {
  const __m512i down = _mm512_set4_epi32(0x0f0e0f0e, 0x0b0a0b0a, 0x07060706, 0x03020302);
  constexpr __mmask64 kLowerHalves = 0x3333333333333333;
  return _mm512_mask_shuffle_epi8(odd, kLowerHalves, even, down);
}
MAINBOARD_INLINE Vec upper_half(__m512i x) {
  return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(0xffff0000)));
}

// Pairs of weights, word by word, as a rounded value and what it lacks. Integer operations and
// shuffles, for while products run only one port of the processor adds floating point.
MAINBOARD_INLINE void split_weights(Vec even, Vec odd, __m512i* higher, __m512i* lower) {
  const __m512i half = _mm512_set1_epi32(0x8000);
  auto rounded = [&](Vec x) __attribute__((always_inline)) {
    return _mm512_add_epi32(_mm512_castps_si512(x), half);
  };
  const __m512i even_top = rounded(even), odd_top = rounded(odd);
  *higher = join_upper(even_top, odd_top);
  *lower = join_upper(rounded(even - upper_half(even_top)), rounded(odd - upper_half(odd_top)));
}

// Elements [32 step, 32 step + 32) of a row; zero from `dim` on.
inline __m512i load_elements(const char* row, int step, int dim) {
  const int left = dim - step * kTileDims;
  const __mmask32 mask = left >= kTileDims ? ~0u : (1u << left) - 1;
  return _mm512_maskz_loadu_epi16(mask, row + step * kTileBytes);
}

// Elements as they are, or float16 as pairs of bfloat16: the first 8 bits of a significand and the
// other 3.
template <int Parts>
inline void split_elements(__m512i raw, __m512i* part) {
  part[0] = raw;
  if constexpr (Parts == 2) {
    const __m512i apart = _mm512_permutexvar_epi16(_mm512_load_si512(kEvenFirst), raw);
    const Vec even = _mm512_cvtph_ps(_mm512_castsi512_si256(apart));
    const Vec odd = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(apart, 1));
    const __m512i even_bits = _mm512_castps_si512(even), odd_bits = _mm512_castps_si512(odd);
    part[0] = join_upper(even_bits, odd_bits);
    part[1] = join_upper(_mm512_castps_si512(even - upper_half(even_bits)),
                         _mm512_castps_si512(odd - upper_half(odd_bits)));
  }
}

inline int tile_steps(int64_t dim) { return static_cast<int>((dim + kTileDims - 1) / kTileDims); }

// Queries as right-hand tiles [part][step][half]: word (i, j) of a tile is elements 32 step + 2 i
// and the next of query 16 half + j. `query` names a row for each of 32 lanes.
template <int Parts>
inline void pack_queries(const char* const* query, int dim, uint32_t* to) {
  const int steps = tile_steps(dim);
  for (int step = 0; step < steps; ++step) {
    for (int half = 0; half < 2; ++half) {
      __m512i word[kTile];
      for (int j = 0; j < kTile; ++j) word[j] = load_elements(query[half * kTile + j], step, dim);
      transpose_words(word);
      for (int j = 0; j < kTile; ++j) {
        __m512i part[Parts];
        split_elements<Parts>(word[j], part);
        for (int p = 0; p < Parts; ++p) {
          uint32_t* tile = to + ((p * steps + step) * 2 + half) * kTileWords;
          _mm512_storeu_si512(tile + j * kTile, part[p]);
        }
      }
    }
  }
}

// Up to 32 keys as left-hand tiles [part][16 keys][step], rows as they are stored.
template <int Parts>
inline void pack_keys(const char* const* key, int n, int dim, uint32_t* to) {
  const int steps = tile_steps(dim);
  const int part_words = kKeyTiles * steps * kTileWords;
  for (int i = 0; i < kTileKeys; ++i) {
    uint32_t* row = to + i / kTile * steps * kTileWords + i % kTile * kTile;
    for (int step = 0; step < steps; ++step) {
      __m512i part[Parts];
      split_elements<Parts>(i < n ? load_elements(key[i], step, dim) : _mm512_setzero_si512(),
                            part);
      for (int p = 0; p < Parts; ++p) {
        _mm512_storeu_si512(row + p * part_words + step * kTileWords, part[p]);
      }
    }
  }
}

// Up to 32 values as left-hand tiles [part][16 elements], transposed: row r of a tile is element
// 16 column + r of all keys. Keys past the last are zero.
template <int Parts>
inline void pack_values(const char* const* value, int n, int dim, uint32_t* to) {
  const int steps = tile_steps(dim);
  const int part_words = 2 * steps * kTileWords;
  for (int step = 0; step < steps; ++step, to += 2 * kTileWords) {
    __m512i low[kTile], high[kTile];
    for (int i = 0; i < kTile; ++i) {
      const int key = 2 * i;
      const __m512i none = _mm512_setzero_si512();
      const __m512i even = key < n ? load_elements(value[key], step, dim) : none;
      const __m512i odd = key + 1 < n ? load_elements(value[key + 1], step, dim) : none;
      // Words of two keys; lane l of `low` has elements 8 l .. 8 l + 3, of `high` the next 4.
      low[i] = _mm512_unpacklo_epi16(even, odd);
      high[i] = _mm512_unpackhi_epi16(even, odd);
    }
    transpose_words(low);
    transpose_words(high);
#pragma GCC unroll 16
    for (int c = 0; c < kTile; ++c) {
      const int element = c / 4 * 8 + c % 4;
      uint32_t* row = to + element * kTile;
      __m512i first[Parts], second[Parts];
      split_elements<Parts>(low[c], first);
      split_elements<Parts>(high[c], second);
      for (int p = 0; p < Parts; ++p) {
        _mm512_storeu_si512(row + p * part_words, first[p]);
        _mm512_storeu_si512(row + p * part_words + 4 * kTile, second[p]);
      }
    }
  }
}

// Sixteen columns of a panel's output, times their weights, as rows of the output's type.
// `row` names 16 places; the first `n` are written, around the caches where that is asked for.
inline void store_outputs(const float* o, Vec weight, int dim, DType dtype, bool streamed,
                          char* const* row, int n) {
  const __m512i order = _mm512_load_si512(kInterleave);
  const bool wide = dtype == DType::f32;
  const int elements = wide ? kTile : kTileDims;  // of 64 bytes
  for (int i = 0; i < n; ++i) streamed &= reinterpret_cast<uintptr_t>(row[i]) % kTileBytes == 0;
  for (int d = 0; d < dim; d += elements) {
    __m512i word[kTile];
    for (int i = 0; i < kTile; ++i) {
      const float* at = o + (d + (wide ? i : 2 * i)) * kTilePanel;
      const Vec even = load(at) * weight;
      if (wide) {
        word[i] = _mm512_castps_si512(even);
        continue;
      }
      const Vec odd = load(at + kTilePanel) * weight;
      const __m512i both = dtype == DType::f16 ? round_halves(even, odd) : round_both(even, odd);
      word[i] = _mm512_permutexvar_epi16(order, both);
    }
    transpose_words(word);
    const int left = dim - d, size = wide ? 4 : 2;
    const uint64_t mask = left >= elements ? ~uint64_t{0} : (uint64_t{1} << left * size) - 1;
    for (int i = 0; i < n; ++i) {
      char* to = row[i] + d * size;
      if (streamed && left >= elements) {
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to), word[i]);
      } else {
        _mm512_mask_storeu_epi8(to, mask, word[i]);
      }
    }
  }
}

}  // namespace mainboard::cpu::MAINBOARD_ISA

#endif  // __AMX_BF16__
