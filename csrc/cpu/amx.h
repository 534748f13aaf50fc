// Prefill in bfloat16 on AMX tiles. The plan is tile.h's: queries in the columns, both products
// transposed. K is read as it is stored; Q and P become the interleaved right-hand operand that
// TDPBF16PS takes, V is transposed once per block of keys.
#pragma once

#include "csrc/cpu/tile.h"

#if defined(__AMX_BF16__)

namespace mainboard::cpu::MAINBOARD_ISA {

constexpr int kTile = 16;       // rows of a tile, and its columns of 32 bits
constexpr int kTileBytes = 64;  // one row
constexpr int kTileDims = 32;   // bfloat16 in one row
constexpr int kTileWords = kTile * kTile;

// gcc 12 tells the optimiser neither that these read memory nor all that they read.
#define MAINBOARD_TILE_FENCE asm volatile("" ::: "memory")

// Eight tiles of 16 rows of 64 bytes for as long as it lives.
class TileSession {
 public:
  TileSession() {
    alignas(64) uint8_t config[64] = {1};
    for (int t = 0; t < 8; ++t) {
      config[16 + 2 * t] = kTileBytes;
      config[48 + t] = kTile;
    }
    MAINBOARD_TILE_FENCE;
    _tile_loadconfig(config);
  }
  ~TileSession() { _tile_release(); }
};

// The transpose of a 16 x 16 matrix of 32-bit words, row by row.
inline void transpose_words(__m512i* row) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    row[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    row[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    row[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    row[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // row[4 b + c] holds column 4 l + c of rows 4 b .. 4 b + 3 in its lane l: transpose the lanes.
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
  for (int i = 0; i < 16; ++i) row[i] = t[i];
}

inline void store_tile(const __m512i* row, uint32_t* to) {
  for (int i = 0; i < kTile; ++i) _mm512_storeu_si512(to + i * kTile, row[i]);
}

// Queries as right-hand tiles: word (i, j) of tile (step, half) is elements 32 step + 2 i and the
// next of the panel's query 16 half + j.
inline void load_query_tiles(const Attention& a, const WorkItem& w, int64_t row, int64_t rows,
                             int vecs, uint32_t* q) {
  for (int half = 0; half < vecs; ++half) {
    const char* query[kTile];
    for (int j = 0; j < kTile; ++j) {
      const LaneRow at = lane_row(a, w, row, rows, half * kTile + j);
      query[j] = a.q.at(w.sequence.query_begin + at.token, 0, at.head);
    }
    for (int step = 0; step * kTileDims < a.head_dim; ++step) {
      __m512i word[kTile];
      for (int j = 0; j < kTile; ++j) word[j] = _mm512_loadu_si512(query[j] + step * kTileBytes);
      transpose_words(word);
      store_tile(word, q + (step * kPanelVecs + half) * kTileWords);
    }
  }
}

// Values as left-hand tiles: row r of tile (pairs, column) is element 16 column + r of 32 keys.
// Keys past the last are zero.
inline void load_value_tiles(const Attention& a, const char* const* v, int n, uint32_t* to) {
  for (int first = 0; first < n; first += kTileDims) {
    for (int column = 0; column * kTile < a.value_dim; ++column) {
      __m512i word[kTile];
      for (int i = 0; i < kTile; ++i) {
        const int even = first + 2 * i, odd = even + 1;
        const __m256i none = _mm256_setzero_si256();
        auto load_part = [&](int key) {
          if (key >= n) return none;
          return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(v[key]) + column);
        };
        word[i] = _mm512_or_si512(_mm512_cvtepu16_epi32(load_part(even)),
                                  _mm512_slli_epi32(_mm512_cvtepu16_epi32(load_part(odd)), 16));
      }
      transpose_words(word);
      store_tile(word, to);
      to += kTileWords;
    }
  }
}

// Rows of 16 keys for the left-hand operand: where they are, or copied when there are fewer.
struct KeyTiles {
  const char* data[kBlockKeys / kTile];
  int64_t stride[kBlockKeys / kTile];
  int count;
};
inline void find_key_tiles(const Attention& a, const char* const* k, int n, char* spare,
                           KeyTiles* tiles) {
  const int64_t bytes = a.head_dim * sizeof(BFloat16);
  tiles->count = (n + kTile - 1) / kTile;
  for (int t = 0; t < tiles->count; ++t) {
    const char* const* row = k + t * kTile;
    const int rows = n - t * kTile < kTile ? n - t * kTile : kTile;
    tiles->data[t] = row[0];
    tiles->stride[t] = rows > 1 ? row[1] - row[0] : bytes;
    if (rows == kTile) continue;
    for (int i = 0; i < kTile; ++i) {
      if (i < rows) std::memcpy(spare + i * bytes, row[i], bytes);
      if (i >= rows) std::memset(spare + i * bytes, 0, bytes);
    }
    tiles->data[t] = spare;
    tiles->stride[t] = bytes;
  }
}

// scores[key][query] of NA tiles of keys and NV of queries.
template <int NA, int NV>
inline void multiply_keys(const KeyTiles& k, int t, int steps, const uint32_t* q, float* scores) {
  _tile_zero(0);
  if constexpr (NV > 1) _tile_zero(1);
  if constexpr (NA > 1) _tile_zero(2);
  if constexpr (NA > 1 && NV > 1) _tile_zero(3);
  MAINBOARD_TILE_FENCE;
  for (int step = 0; step < steps; ++step, q += kPanelVecs * kTileWords) {
    _tile_loadd(4, k.data[t] + step * kTileBytes, k.stride[t]);
    _tile_loadd(6, q, kTileBytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (NV > 1) {
      _tile_loadd(7, q + kTileWords, kTileBytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (NA > 1) {
      _tile_loadd(5, k.data[t + 1] + step * kTileBytes, k.stride[t + 1]);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (NV > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  float* to = scores + t * kTile * kPanel;
  constexpr int kStride = kPanel * sizeof(float);
  _tile_stored(0, to, kStride);
  if constexpr (NV > 1) _tile_stored(1, to + kTile, kStride);
  if constexpr (NA > 1) _tile_stored(2, to + kTile * kPanel, kStride);
  if constexpr (NA > 1 && NV > 1) _tile_stored(3, to + kTile * kPanel + kTile, kStride);
  MAINBOARD_TILE_FENCE;
}

// o[value][query] += v p for NA tiles of values and NV of queries, over `pairs` tiles of 32 keys.
template <int NA, int NV>
inline void multiply_values(int pairs, const uint32_t* v, int64_t v_step, const uint32_t* p,
                            float* o) {
  constexpr int kStride = kPanel * sizeof(float);
  MAINBOARD_TILE_FENCE;
  _tile_loadd(0, o, kStride);
  if constexpr (NV > 1) _tile_loadd(1, o + kTile, kStride);
  if constexpr (NA > 1) _tile_loadd(2, o + kTile * kPanel, kStride);
  if constexpr (NA > 1 && NV > 1) _tile_loadd(3, o + kTile * kPanel + kTile, kStride);
  for (int i = 0; i < pairs; ++i, v += v_step, p += kPanelVecs * kTileWords) {
    _tile_loadd(4, v, kTileBytes);
    _tile_loadd(6, p, kTileBytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (NV > 1) {
      _tile_loadd(7, p + kTileWords, kTileBytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (NA > 1) {
      _tile_loadd(5, v + kTileWords, kTileBytes);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (NV > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, o, kStride);
  if constexpr (NV > 1) _tile_stored(1, o + kTile, kStride);
  if constexpr (NA > 1) _tile_stored(2, o + kTile * kPanel, kStride);
  if constexpr (NA > 1 && NV > 1) _tile_stored(3, o + kTile * kPanel + kTile, kStride);
  MAINBOARD_TILE_FENCE;
}

// Weights as right-hand tiles, rounded to bfloat16: word (i, j) of tile (pairs, half) is keys
// 32 pairs + 2 i and the next for query 16 half + j. Keys past the last weigh nothing.
template <int NV>
inline void round_weights(const float* weights, int n, uint32_t* to) {
  alignas(64) static const uint16_t kInterleave[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                       21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                       11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i order = _mm512_load_si512(kInterleave);
  const int rounded = (n + kTileDims - 1) / kTileDims * kTileDims;
  for (int i = 0; i < rounded; i += 2) {
    uint32_t* row = to + i / kTileDims * kPanelVecs * kTileWords + i % kTileDims / 2 * kTile;
    for (int half = 0; half < NV; ++half) {
      const float* even = weights + i * kPanel + half * kTile;
      const Vec first = i < n ? load(even) : zero();
      const Vec second = i + 1 < n ? load(even + kPanel) : zero();
      const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
      _mm512_storeu_si512(row + half * kTileWords, _mm512_permutexvar_epi16(order, both));
    }
  }
}

inline void scale_columns(float* o, int64_t rows, int vecs, const Vec* keep) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int v = 0; v < vecs; ++v) {
      float* at = o + r * kPanel + v * kLanes;
      store(at, load(at) * keep[v]);
    }
  }
}

struct AmxScratch {
  uint32_t* values;   // [pairs of 16 keys][value_dim / 16] tiles
  uint32_t* weights;  // [pairs][kPanelVecs] tiles
  float* scores;      // [kBlockKeys][kPanel]
  char* spare;        // 16 keys
};

template <int NV>
inline void attend_panel_amx(const Attention& a, const WorkItem& w, Panel& p, int64_t key, int n,
                             const KeyTiles& k, const AmxScratch& s) {
  const uint32_t* q = reinterpret_cast<const uint32_t*>(p.q);
  const int steps = static_cast<int>(a.head_dim) / kTileDims;
  int t = 0;
  for (; t + 2 <= k.count; t += 2) multiply_keys<2, NV>(k, t, steps, q, s.scores);
  if (t < k.count) multiply_keys<1, NV>(k, t, steps, q, s.scores);

  // The scale waits until here because queries are not rounded a second time.
  float scale = score_scale(a, w.kv_head);
  if (a.softcap > 0.0f || a.alibi_slopes != nullptr || scale <= 0.0f || partly_hidden(p, key, n)) {
    Vec factor[NV];
    for (Vec& f : factor) f = set1(scale);
    scale_columns(s.scores, n, NV, factor);
    shape_scores<NV>(a, p, key, n, s.scores);
    scale = 1.0f;
  }
  Vec keep[NV];
  soften<NV>(p, n, scale, s.scores, keep);
  round_weights<NV>(s.scores, n, s.weights);
  scale_columns(p.o, a.value_dim, NV, keep);

  const int columns = static_cast<int>(a.value_dim) / kTile;
  const int pairs = (n + kTileDims - 1) / kTileDims;
  int c = 0;
  for (; c + 2 <= columns; c += 2) {
    multiply_values<2, NV>(pairs, s.values + c * kTileWords, columns * kTileWords, s.weights,
                           p.o + c * kTile * kPanel);
  }
  if (c < columns) {
    multiply_values<1, NV>(pairs, s.values + c * kTileWords, columns * kTileWords, s.weights,
                           p.o + c * kTile * kPanel);
  }
}

inline bool amx_serves(const Attention& a) {
  return a.q.dtype == DType::bf16 && a.k.dtype == DType::bf16 && a.head_dim % kTileDims == 0 &&
         a.value_dim % kTile == 0;
}

inline int64_t amx_scratch_floats(const Attention& a) {
  return kPanelsPerBlock * kPanel * (a.head_dim / 2 + a.value_dim) +
         kBlockKeys * (a.value_dim / 2 + kPanel / 2 + kPanel) + kTile * a.head_dim / 2 +
         a.value_dim + kTile;
}

// Attends one work item of at most kPanelsPerBlock panels of rows.
inline void attend_amx(const Attention& a, const WorkItem& w, float* scratch) {
  const int64_t dim = a.head_dim, value_dim = a.value_dim;
  float* next = scratch;
  auto take = [&](int64_t floats) {
    float* block = next;
    next += floats;
    return block;
  };
  AmxScratch s;
  s.scores = take(kBlockKeys * kPanel);
  s.values = reinterpret_cast<uint32_t*>(take(kBlockKeys * value_dim / 2));
  s.weights = reinterpret_cast<uint32_t*>(take(kBlockKeys * kPanel / 2));
  s.spare = reinterpret_cast<char*>(take(kTile * dim / 2));

  const int64_t rows = (w.query_end - w.query_begin) * a.group;
  const int panels = static_cast<int>((rows + kPanel - 1) / kPanel);
  Panel panel[kPanelsPerBlock];
  for (int i = 0; i < panels; ++i) {
    const int64_t left = rows - i * kPanel, in_panel = left < kPanel ? left : kPanel;
    panel[i].q = take(kPanel * dim / 2);
    panel[i].o = take(kPanel * value_dim);
    begin_panel(a, w, i * kPanel, in_panel, panel[i]);
    load_query_tiles(a, w, i * kPanel, in_panel, panel[i].vecs,
                     reinterpret_cast<uint32_t*>(panel[i].q));
  }

  const TileSession session;
  const char* k[kBlockKeys];
  const char* v[kBlockKeys];
  KeyTiles tiles;
  for (int64_t key = w.key_begin; key < w.key_end; key += kBlockKeys) {
    const int n = static_cast<int>(clamp(w.key_end - key, 0, kBlockKeys));
    key_rows(a.k, w.sequence, a.page_size, key, w.kv_head, n, k);
    key_rows(a.v, w.sequence, a.page_size, key, w.kv_head, n, v);
    find_key_tiles(a, k, n, s.spare, &tiles);
    load_value_tiles(a, v, n, s.values);
    for (int i = 0; i < panels; ++i) {
      Panel& p = panel[i];
      if (!sees(p, key, n)) continue;
      if (p.vecs == 1) {
        attend_panel_amx<1>(a, w, p, key, n, tiles, s);
      } else {
        attend_panel_amx<2>(a, w, p, key, n, tiles, s);
      }
    }
  }
  finish_panels(a, w, panel, take(value_dim));
}

}  // namespace mainboard::cpu::MAINBOARD_ISA

#endif  // __AMX_BF16__
