// Attention for a few query rows (verification, decode of large groups) on AMX tiles, in bfloat16.
//
// Keys are the left-hand operand as they are stored. Weights are the left-hand operand of the
// second product, whose other one is made of pairs of values, which takes one shuffle a vector; its
// columns come out in the shuffle's order, and are put right when a row is finished.
#pragma once

#include "csrc/cpu/amx_tiles.h"
#include "csrc/cpu/decode.h"

#if defined(__AMX_BF16__)

namespace mainboard::cpu::MAINBOARD_ISA {

constexpr int kFewRows = 32;  // most rows this kernel takes, in tiles of 16

struct FewRows {
  int rows, tiles;  // of 16 rows
  int steps, columns;
  uint32_t* q;        // [tile][step] right-hand tiles
  float* o;           // [tile][16 rows][columns of 16]
  float* scores;      // [row][kTileKeys]
  uint32_t* weights;  // [tile][32 keys] left-hand tiles
  uint32_t* values;   // [32 keys][column] right-hand tiles
  char* spare;        // 16 keys
  DotRow row[kFewRows];
};

inline bool few_rows_serve(const Attention& a, const WorkItem& w) {
  return a.q.dtype == DType::bf16 && (w.query_end - w.query_begin) * a.group <= kFewRows &&
         a.head_dim % kTileDims == 0 && a.value_dim % kTileDims == 0;
}

inline int64_t few_rows_scratch_floats(const Attention& a) {
  const int64_t steps = tile_steps(a.head_dim), columns = 2 * tile_steps(a.value_dim);
  return kFewRows / kTile * kTileWords * (steps + columns + kWeightDepth) + kFewRows * kTileKeys +
         kWeightDepth * columns * kTileWords + kTile * a.head_dim + a.value_dim;
}

// Scores of 16 keys, row by row: rows[r][key].
inline void score_tile(const FewRows& s, int tile, const char* k, int64_t stride, float scale,
                       float* to) {
  alignas(64) float products[kTileWords];
  const uint32_t* q = s.q + tile * s.steps * kTileWords;
  _tile_zero(0);
  for (int step = 0; step < s.steps; ++step) {
    _tile_loadd(4, k + step * kTileBytes, stride);
    _tile_loadd(6, q + step * kTileWords, kTileBytes);
    _tile_dpbf16ps(0, 4, 6);
  }
  _tile_stored(0, products, kTileBytes);
  MAINBOARD_TILE_FENCE;
  __m512i word[kTile];
  for (int i = 0; i < kTile; ++i) word[i] = _mm512_load_si512(products + i * kTile);
  transpose_words(word);
  const int rows = s.rows - tile * kTile < kTile ? s.rows - tile * kTile : kTile;
  for (int r = 0; r < rows; ++r) {
    store(to + (tile * kTile + r) * kTileKeys, _mm512_castsi512_ps(word[r]) * set1(scale));
  }
}

// Pairs of values as right-hand tiles; keys from n on are zero.
inline void pair_values(const char* const* value, int n, FewRows& s) {
  const __m512i none = _mm512_setzero_si512();
  for (int i = 0; i < (n + 1) / 2; ++i) {
    uint32_t* row = s.values + i / kTile * s.columns * kTileWords + i % kTile * kTile;
    for (int c = 0; c < s.columns; c += 2) {
      const __m512i even = _mm512_loadu_si512(value[2 * i] + c / 2 * kTileBytes);
      const __m512i odd =
          2 * i + 1 < n ? _mm512_loadu_si512(value[2 * i + 1] + c / 2 * kTileBytes) : none;
      _mm512_storeu_si512(row + c * kTileWords, _mm512_unpacklo_epi16(even, odd));
      _mm512_storeu_si512(row + (c + 1) * kTileWords, _mm512_unpackhi_epi16(even, odd));
    }
  }
  for (int i = (n + 1) / 2; i < kTileKeys / 2; ++i) {
    uint32_t* row = s.values + i / kTile * s.columns * kTileWords + i % kTile * kTile;
    for (int c = 0; c < s.columns; ++c) _mm512_storeu_si512(row + c * kTileWords, none);
  }
}

// The softmax of all rows over keys [key, key + n), n at most 64.
inline void soften_rows(const Attention& a, FewRows& s, int64_t key, int n) {
  for (int r = 0; r < s.rows; ++r) {
    float* scores = s.scores + r * kTileKeys;
    const float keep = soften_row<kTileKeys>(a, s.row[r], key, n, scores);
    if (keep != 1.0f) {
      float* o = s.o + (r / kTile * s.columns * kTile + r % kTile * s.columns) * kTile;
      narrow(o, keep, o, s.columns * kTile);
    }
    for (int depth = 0; depth < kWeightDepth; ++depth) {
      Vec part[2];
      for (int j = 0; j < 2; ++j) {
        const int begin = depth * kTileDims + j * kTile;
        part[j] = begin < n ? load(scores + begin) : zero();
      }
      uint32_t* to = s.weights + ((r / kTile * kWeightDepth + depth) * kTile + r % kTile) * kTile;
      _mm512_storeu_si512(to, round_both(part[0], part[1]));
    }
  }
}

inline void add_few_values(const FewRows& s, int tile, int depths) {
  const int64_t stride = s.columns * kTileBytes;
  float* o = s.o + tile * s.columns * kTileWords;
  const uint32_t* p = s.weights + tile * kWeightDepth * kTileWords;
  for (int c = 0; c < s.columns; c += 2) {
    _tile_loadd(0, o + c * kTile, stride);
    _tile_loadd(1, o + (c + 1) * kTile, stride);
    for (int depth = 0; depth < depths; ++depth) {
      const uint32_t* v = s.values + (depth * s.columns + c) * kTileWords;
      _tile_loadd(4, p + depth * kTileWords, kTileBytes);
      _tile_loadd(6, v, kTileBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, v + kTileWords, kTileBytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, o + c * kTile, stride);
    _tile_stored(1, o + (c + 1) * kTile, stride);
  }
}

inline void begin_few_rows(const Attention& a, const WorkItem& w, FewRows& s, float* scratch) {
  float* next = scratch;
  auto take = [&](int64_t floats) {
    float* block = next;
    next += floats;
    return block;
  };
  s.rows = static_cast<int>((w.query_end - w.query_begin) * a.group);
  s.tiles = (s.rows + kTile - 1) / kTile;
  s.steps = tile_steps(a.head_dim);
  s.columns = 2 * tile_steps(a.value_dim);
  s.q = reinterpret_cast<uint32_t*>(take(s.tiles * s.steps * kTileWords));
  s.o = take(s.tiles * s.columns * kTileWords);
  s.weights = reinterpret_cast<uint32_t*>(take(s.tiles * kWeightDepth * kTileWords));
  s.scores = take(kFewRows * kTileKeys);
  s.values = reinterpret_cast<uint32_t*>(take(kWeightDepth * s.columns * kTileWords));
  s.spare = reinterpret_cast<char*>(take(kTile * a.head_dim / 2));
  std::memset(s.o, 0, sizeof(float) * s.tiles * (s.columns + kWeightDepth) * kTileWords);
  const char* query[kFewRows];
  for (int r = 0; r < s.tiles * kTile; ++r) {
    const int row = r < s.rows ? r : s.rows - 1;
    const int64_t token = w.query_begin + row / a.group, head = w.first_head + row % a.group;
    const int64_t position = token + w.sequence.keys - w.sequence.queries;
    query[r] = a.q.at(w.sequence.query_begin + token, 0, head);
    s.row[r] = {kNoPeak, 0.0f, a.alibi_slopes == nullptr ? 0.0f : a.alibi_slopes[head], position,
                visible(a, w, position)};
  }
  for (int tile = 0; tile < s.tiles; ++tile) {
    for (int step = 0; step < s.steps; ++step) {
      __m512i word[kTile];
      for (int j = 0; j < kTile; ++j) {
        word[j] = _mm512_loadu_si512(query[tile * kTile + j] + step * kTileBytes);
      }
      transpose_words(word);
      store_tile(word, s.q + (tile * s.steps + step) * kTileWords);
    }
  }
}

inline void finish_few_rows(const Attention& a, const WorkItem& w, const FewRows& s, float* line) {
  const int dim = static_cast<int>(a.value_dim);
  for (int r = 0; r < s.rows; ++r) {
    const float* o = s.o + (r / kTile * s.columns * kTile + r % kTile * s.columns) * kTile;
    for (int d = 0; d < dim; d += 8) {
      // Four elements from a column of the low halves, four from one of the high halves.
      const float* low = o + d / kTileDims * kTileDims + d % kTileDims / 2;
      std::memcpy(line + d, low, 4 * sizeof(float));
      std::memcpy(line + d + 4, low + kTile, 4 * sizeof(float));
    }
    finish_row(a, w, r, line, s.row[r].peak, s.row[r].sum);
  }
}

inline void attend_few_rows(const Attention& a, const WorkItem& w, float* scratch) {
  FewRows s;
  begin_few_rows(a, w, s, scratch);
  const TileSession session;
  const float scale = score_scale(a, w.kv_head);
  const int64_t bytes = a.head_dim * size_of(DType::bf16);
  const char *k[kTileKeys], *v[kTileKeys];
  for (int64_t key = w.key_begin; key < w.key_end; key += kTileKeys) {
    const int n = static_cast<int>(clamp(w.key_end - key, 0, kTileKeys));
    key_rows(a.k, w.sequence, a.page_size, key, w.kv_head, n, k);
    key_rows(a.v, w.sequence, a.page_size, key, w.kv_head, n, v);
    for (int i = 0; i < n; i += kTile) {
      const int rows = n - i < kTile ? n - i : kTile;
      // Values come next, in an order that the processor does not foresee; keys it does.
      for (int j = 0; j < rows; ++j) prefetch(v[i + j], a.value_dim * size_of(DType::bf16));
      const char* data = k[i];
      int64_t stride = rows > 1 ? k[i + 1] - k[i] : bytes;
      if (rows < kTile) {  // what follows the last key is not ours to read
        std::memset(s.spare, 0, kTile * bytes);
        for (int j = 0; j < rows; ++j) std::memcpy(s.spare + j * bytes, k[i + j], bytes);
        data = s.spare;
        stride = bytes;
      }
      MAINBOARD_TILE_FENCE;
      for (int tile = 0; tile < s.tiles; ++tile) {
        score_tile(s, tile, data, stride, scale, s.scores + i);
      }
    }
    soften_rows(a, s, key, n);
    pair_values(v, n, s);
    MAINBOARD_TILE_FENCE;
    const int depths = (n + kTileDims - 1) / kTileDims;
    for (int tile = 0; tile < s.tiles; ++tile) add_few_values(s, tile, depths);
    MAINBOARD_TILE_FENCE;
  }
  finish_few_rows(a, w, s, s.scores);
}

}  // namespace mainboard::cpu::MAINBOARD_ISA

#endif  // __AMX_BF16__
