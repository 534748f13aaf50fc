// A block of keys and values as operands of AMX tiles, and the products of a few query rows with
// it.
#pragma once

#include "csrc/cpu/amx_lanes.h"
#include "csrc/cpu/decode.h"
#include "csrc/cpu/halves.h"

#if defined(__AMX_BF16__)

namespace mainboard::cpu::MAINBOARD_ISA {

constexpr int kPieces = 4;       // of a step of 32 elements
constexpr int kStepsAtOnce = 4;  // whose outputs are kept in tiles

// The order of a row's elements in tiles: where a step's pieces of eight begin. Bytes are converted
// 64 at a time and two steps share those; the other types keep their order.
template <class T>
constexpr int element_of(int step, int piece) {
  return sizeof(T) == 1 ? step / 2 * 64 + piece * 16 + step % 2 * 8 : step * kTileDims + piece * 8;
}
template <class T>
constexpr int row_steps(int64_t dim) {
  return sizeof(T) == 1 ? static_cast<int>((dim + 63) / 64) * 2 : tile_steps(dim);
}
// A step of a row of bfloat16 in that order.
template <class T>
inline __m512i load_step(const char* row, int step, int64_t dim) {
  __m128i piece[kPieces];
  for (int i = 0; i < kPieces; ++i) {
    const int d = element_of<T>(step, i);
    piece[i] = d < dim ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + 2 * d))
                       : _mm_setzero_si128();
  }
  return _mm512_loadu_si512(piece);
}

// The rows of one key head in tiles: the first 16 in tiles of 16, what is left in smaller ones,
// which cost less.
struct FewRowsSizes {
  int rows, sets;          // of up to 16 rows
  int last, width;         // rows of the last set, and its lanes
  int steps, value_steps;  // tiles along the elements
  int64_t q, o;            // words of one key head

  FewRowsSizes(int few, int key_steps, int value) : rows(few), steps(key_steps) {
    value_steps = value;
    sets = (rows + kTile - 1) / kTile;
    last = rows - (sets - 1) * kTile;
    width = lane_width(last);
    q = int64_t{sets} * steps * kTileWords;
    o = int64_t{2} * value_steps * kTile * ((sets - 1) * kTile + width);
  }
  // Whether the last set's weights for even and for odd elements fit into one tile.
  bool narrow() const { return width < kTile; }
  // Whether that tile is all: the outputs of four steps are kept in tiles then.
  bool single() const { return sets == 1 && narrow(); }
  // Of a step's even elements, and then of its odd ones.
  LaneOutputs outputs(float* o, int set) const {
    return {o + int64_t{2} * value_steps * kTileWords * set, set + 1 < sets ? kTile : width,
            2 * value_steps};
  }
};

// Eight tiles, of which the last ones have as many rows as the last set's weights have.
inline void configure_few_rows(const FewRowsSizes& sizes) {
  const int rows = sizes.narrow() ? sizes.width + sizes.last : sizes.last;
  const int first = sizes.sets == 2 ? 4 : 3;
  alignas(64) uint8_t config[64] = {1};
  for (int t = 0; t < 8; ++t) {
    config[16 + 2 * t] = kTileBytes;
    config[48 + t] = static_cast<uint8_t>(t < first ? kTile : rows);
  }
  MAINBOARD_TILE_FENCE;
  _tile_loadconfig(config);
}

// Sixteen rows as a tile of bfloat16: the first row, and the way to the next.
struct RowTile {
  const char* data;
  int64_t stride;
};

// A block's keys or its values. What lies in bytes is converted a tile at a time, and only so many
// tiles of it are kept: more would not fit into the first-level cache together with what else is
// there. The rest stays where it is, but for the last rows, behind which not everything is ours to
// read.
template <class T>
class BlockRows {
 public:
  BlockRows(char* to, int64_t dim, int steps, int kept)
      : to_(to),
        dim_(static_cast<int>(dim)),
        kept_(kept),
        stride_(kConverts ? steps * kTileBytes : 2 * dim) {}

  void begin(const char* const* rows, int64_t offset, int count) {
    rows_ = rows;
    offset_ = offset;
    count_ = count;
    tiles_ = (count + kTile - 1) / kTile;
    if (kConverts || count % kTile == 0) return;
    char* to = place(tiles_ - 1);
    std::memset(to, 0, kTile * stride_);
    for (int i = (tiles_ - 1) * kTile; i < count; ++i, to += stride_) {
      std::memcpy(to, row(i), stride_);
    }
  }
  int tiles() const { return tiles_; }
  bool keeps_all() const { return kept_ * kTile >= kFewKeys; }

  // Rows [first, first + n) of a tile, as far as there are any. Past the last one it is repeated.
  MAINBOARD_INLINE void convert(int t, int first, int n) const {
    if constexpr (kConverts) {
      if (t >= tiles_) return;
      const int last = count_ - 1 - t * kTile, end = first + n < kTile ? first + n : kTile;
      const RowTile from = stored(t);
      char* to = place(t) + first * stride_;
      for (int i = first; i < end; ++i, to += stride_) {
        convert_row(from.data + (i < last ? i : last) * from.stride, to);
      }
    }
  }
  MAINBOARD_INLINE RowTile tile(int t) const {
    return kConverts || t * kTile + kTile > count_ ? RowTile{place(t), stride_} : stored(t);
  }

 private:
  static constexpr bool kConverts = sizeof(T) == 1;
  const char* row(int i) const { return rows_[i] + offset_; }
  char* place(int t) const { return to_ + (t & (kept_ - 1)) * kTile * stride_; }
  RowTile stored(int t) const {
    const int i = t * kTile;
    return {row(i), i + 1 < count_ ? row(i + 1) - row(i) : 0};
  }
  MAINBOARD_INLINE void convert_row(const char* from, char* to) const {
    int d = 0;
    for (; d + 64 <= dim_; d += 64, to += 2 * kTileBytes) {
      store_halves(parted_halves_of(T{}, _mm512_loadu_si512(from + d)), to);
    }
    if (d < dim_) {
      store_halves(parted_halves_of(T{}, _mm512_maskz_loadu_epi8(0xffffffff, from + d)), to);
    }
  }
  static MAINBOARD_INLINE void store_halves(Halves x, char* to) {
    _mm512_storeu_si512(to, x.low);
    _mm512_storeu_si512(to + kTileBytes, x.high);
  }

  const char* const* rows_ = nullptr;
  int64_t offset_ = 0;
  int count_ = 0, tiles_ = 0;
  char* to_;
  int dim_, kept_;
  int64_t stride_;
};

// Scores of a block's keys: [set][key][16 rows]. `between(t, step)` is called after the products of
// a step of the t'th tile.
template <class T, class Between>
MAINBOARD_INLINE void multiply_few_keys(const FewRowsSizes& sizes, const BlockRows<T>& k,
                                        const uint32_t* q, float* scores, Between&& between) {
  const uint32_t* second = q + sizes.steps * kTileWords;
  const int tiles = k.tiles();
  for (int t = 0; t < tiles; ++t, scores += kTileWords) {
    const RowTile key = k.tile(t);
    _tile_zero(0);
    if (sizes.sets == 2) {
      _tile_zero(1);
      for (int step = 0; step < sizes.steps; ++step) {
        _tile_stream_loadd(2, key.data + step * kTileBytes, key.stride);
        _tile_loadd(3, q + step * kTileWords, kTileBytes);
        _tile_dpbf16ps(0, 2, 3);
        _tile_loadd(3, second + step * kTileWords, kTileBytes);
        _tile_dpbf16ps(1, 2, 3);
        between(t, step);
      }
      _tile_stored(1, scores + kFewKeys * kTile, kTileBytes);
    } else {
      for (int step = 0; step < sizes.steps; ++step) {
        _tile_stream_loadd(2, key.data + step * kTileBytes, key.stride);
        _tile_loadd(1, q + step * kTileWords, kTileBytes);
        _tile_dpbf16ps(0, 2, 1);
        between(t, step);
      }
    }
    _tile_stored(0, scores, kTileBytes);
  }
}

// Adds a block's weighted values to the outputs of one key head. Values are words of two elements,
// as they are stored; each row has weights that meet the even ones and weights that meet the odd.
// Here both are in one tile.
template <class T, class Between>
MAINBOARD_INLINE void multiply_single_values(const FewRowsSizes& sizes, const BlockRows<T>& v,
                                             const uint32_t* weights, float* output,
                                             Between&& between) {
  const int tiles = v.tiles(), words = 2 * sizes.width * kTile;
  for (int begin = 0; begin < sizes.value_steps; begin += kStepsAtOnce) {
    const int steps = sizes.value_steps - begin;
    float* o = output + begin * words;
    _tile_loadd(4, o, kTileBytes);
    if (steps > 1) _tile_loadd(5, o + words, kTileBytes);
    if (steps > 2) _tile_loadd(6, o + 2 * words, kTileBytes);
    if (steps > 3) _tile_loadd(7, o + 3 * words, kTileBytes);
    for (int t = 0; t < tiles; ++t) {
      const RowTile value = v.tile(t);
      const char* row = value.data + begin * kTileBytes;
      _tile_loadd(3, weights + t * words, kTileBytes);
      _tile_stream_loadd(2, row, value.stride);
      _tile_dpbf16ps(4, 3, 2);
      between(t, begin);
      if (steps > 1) {
        _tile_stream_loadd(2, row + kTileBytes, value.stride);
        _tile_dpbf16ps(5, 3, 2);
        between(t, begin + 1);
      }
      if (steps > 2) {
        _tile_stream_loadd(2, row + 2 * kTileBytes, value.stride);
        _tile_dpbf16ps(6, 3, 2);
        between(t, begin + 2);
      }
      if (steps > 3) {
        _tile_stream_loadd(2, row + 3 * kTileBytes, value.stride);
        _tile_dpbf16ps(7, 3, 2);
        between(t, begin + 3);
      }
    }
    _tile_stored(4, o, kTileBytes);
    if (steps > 1) _tile_stored(5, o + words, kTileBytes);
    if (steps > 2) _tile_stored(6, o + 2 * words, kTileBytes);
    if (steps > 3) _tile_stored(7, o + 3 * words, kTileBytes);
  }
}

// The same for more rows, a step at a time.
template <class T, class Between>
MAINBOARD_INLINE void multiply_few_values(const FewRowsSizes& sizes, const BlockRows<T>& v,
                                          const uint32_t* weights, float* output,
                                          Between&& between) {
  const int tiles = v.tiles(), width = sizes.width * kTile;  // words of the last set's even weights
  const bool two = sizes.sets == 2, wide = !sizes.narrow();
  const uint32_t* last = weights + (sizes.sets - 1) * kWeightsOfSet;
  float* last_output = sizes.outputs(output, sizes.sets - 1).data;
  for (int step = 0; step < sizes.value_steps; ++step) {
    float* o = output + step * 2 * kTileWords;
    float* p = last_output + step * 2 * width;
    _tile_loadd(4, p, kTileBytes);
    if (wide) _tile_loadd(6, p + width, kTileBytes);
    if (two) {
      _tile_loadd(0, o, kTileBytes);
      _tile_loadd(1, o + kTileWords, kTileBytes);
    }
    for (int t = 0; t < tiles; ++t) {
      const RowTile value = v.tile(t);
      const uint32_t *x = weights + t * 2 * kTileWords, *y = last + t * 2 * width;
      _tile_stream_loadd(2, value.data + step * kTileBytes, value.stride);
      _tile_loadd(5, y, kTileBytes);
      _tile_dpbf16ps(4, 5, 2);
      if (wide) {
        _tile_loadd(5, y + width, kTileBytes);
        _tile_dpbf16ps(6, 5, 2);
      }
      if (two) {
        _tile_loadd(3, x, kTileBytes);
        _tile_dpbf16ps(0, 3, 2);
        _tile_loadd(3, x + kTileWords, kTileBytes);
        _tile_dpbf16ps(1, 3, 2);
      }
      between();
    }
    _tile_stored(4, p, kTileBytes);
    if (wide) _tile_stored(6, p + width, kTileBytes);
    if (two) {
      _tile_stored(0, o, kTileBytes);
      _tile_stored(1, o + kTileWords, kTileBytes);
    }
  }
}

}  // namespace mainboard::cpu::MAINBOARD_ISA

#endif  // __AMX_BF16__
