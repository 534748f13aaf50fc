// A block of keys and values as operands of AMX tiles, and the products of a few query rows with
// it.
#pragma once

#include "csrc/cpu/amx_lanes.h"
#include "csrc/cpu/decode.h"
#include "csrc/cpu/halves.h"

#if defined(__AMX_BF16__)

namespace mainboard::cpu::MAINBOARD_ISA {

constexpr int kEights = 4;       // of a step of 32 elements
constexpr int kStepsAtOnce = 4;  // whose outputs are kept in tiles

// The order of a row's elements in tiles: where the eights of a step begin. Bytes are converted 64
// at a time and two steps share those; the other types keep their order.
template <class T>
constexpr int element_of(int step, int eight) {
  return sizeof(T) == 1 ? step / 2 * 64 + eight * 16 + step % 2 * 8 : step * kTileDims + eight * 8;
}
template <class T>
constexpr int row_steps(int64_t dim) {
  return sizeof(T) == 1 ? static_cast<int>((dim + 63) / 64) * 2 : tile_steps(dim);
}
// A step of a row of bfloat16 in that order.
template <class T>
inline __m512i load_step(const char* row, int step, int64_t dim) {
  const auto eight = [&](int i) {
    const int d = element_of<T>(step, i);
    return d < dim ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + 2 * d))
                   : _mm_setzero_si128();
  };
  __m512i x = _mm512_castsi128_si512(eight(0));
  x = _mm512_inserti32x4(x, eight(1), 1);
  x = _mm512_inserti32x4(x, eight(2), 2);
  return _mm512_inserti32x4(x, eight(3), 3);
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
    q = int64_t{sets} * steps * kTile * lanes();
    o = int64_t{2} * value_steps * kTile * ((sets - 1) * kTile + width);
  }
  // Whether the last set's weights for even and for odd elements fit into one tile.
  bool narrow() const { return width < kTile; }
  // Whether that tile is all: the outputs of four steps are kept in tiles then.
  bool single() const { return sets == 1 && narrow(); }
  // Columns of a tile of queries, and of scores.
  int lanes() const { return single() ? width : kTile; }
  // Bytes of 16 keys or of 16 values in tiles, whichever are more.
  int64_t place_bytes() const {
    return kTileWords * 4 * (steps > value_steps ? steps : value_steps);
  }
  // Of a step's even elements, and then of its odd ones.
  LaneOutputs outputs(float* o, int set) const {
    return {o + int64_t{2} * value_steps * kTileWords * set, set + 1 < sets ? kTile : width,
            2 * value_steps};
  }
};

// Eight tiles. The last ones have as many rows as the last set's weights have; where that is all,
// queries and scores have as many columns as it has lanes, so that there is less to read and write.
inline void configure_few_rows(const FewRowsSizes& sizes) {
  const int rows = sizes.narrow() ? sizes.width + sizes.last : sizes.last;
  const int first = sizes.sets == 2 ? 4 : 3;
  alignas(64) uint8_t config[64] = {1};
  for (int t = 0; t < 8; ++t) {
    config[16 + 2 * t] = kTileBytes;
    config[48 + t] = static_cast<uint8_t>(t < first ? kTile : rows);
  }
  if (sizes.single()) config[16] = config[18] = static_cast<uint8_t>(4 * sizes.width);
  MAINBOARD_TILE_FENCE;
  _tile_loadconfig(config);
}

// Sixteen rows as a tile of bfloat16: the first row, and the way to the next.
struct RowTile {
  const char* data;
  int64_t stride;
};

// So many rows a step that a tile's are done with its products.
constexpr int rows_a_step(int steps) { return (kTile + steps - 1) / steps; }

// A block's keys or its values, with kDim elements each, or any number if that is 0. What lies in
// bytes is converted 16 rows at a time, of which only few are kept: more would not fit into the
// first-level cache together with what else is there. They are whole rows, because the processor
// itself reads on in the order of addresses. The rest stays where it is, but for the last rows,
// behind which not everything is ours to read.
template <class T, int kDim>
class BlockRows {
 public:
  static constexpr bool kConverts = sizeof(T) == 1;

  // `to` has `kept` places of `size` bytes for 16 rows, or one where none is converted.
  BlockRows(int64_t dim, char* to, int64_t size, int kept)
      : to_(to), size_(size), dim_(static_cast<int>(dim)), kept_(kept) {}

  // The first 16 rows take the place after that of the last of `before` others.
  void begin(const char* const* rows, int64_t offset, int count, int before) {
    rows_ = rows;
    offset_ = offset;
    count_ = count;
    before_ = before;
    tiles_ = (count + kTile - 1) / kTile;
    if (kConverts || count % kTile == 0) return;
    std::memset(to_, 0, kTile * stride());
    char* to = to_;
    for (int i = (tiles_ - 1) * kTile; i < count; ++i, to += stride()) {
      std::memcpy(to, rows_[i] + offset_, stride());
    }
  }
  int tiles() const { return tiles_; }
  int steps() const { return row_steps<T>(dim()); }  // of a tile of each along the elements
  int converted() const { return before_ + tiles_; }

  // Converts a step's share, of so many steps, of the t'th 16 rows, if there are any. Past the last
  // row it is repeated.
  MAINBOARD_INLINE void convert(int t, int step, int steps) const {
    if constexpr (kConverts) {
      if (t >= tiles_) return;
      const int each = rows_a_step(steps), first = t * kTile + step * each;
      const int left = kTile - step * each, n = kTile % steps == 0 || each < left ? each : left;
      char* to = place(t) + step * each * stride();
      if (__builtin_expect(t * kTile + kTile > count_, 0)) return convert_last(first, n, to);
      const int64_t next = rows_[t * kTile + 1] - rows_[t * kTile];
      const char* from = rows_[t * kTile] + offset_ + step * each * next;
#pragma GCC unroll 4
      for (int i = 0; i < n; ++i) convert_row(from + i * next, to + i * stride());
    }
  }
  MAINBOARD_INLINE RowTile tile(int t, int step) const {
    const int row = t * kTile;
    if (kConverts || row + kTile > count_) return {place(t) + step * kTileBytes, stride()};
    return {rows_[row] + offset_ + step * kTileBytes, rows_[row + 1] - rows_[row]};
  }

 private:
  int dim() const { return kDim != 0 ? kDim : dim_; }
  int64_t stride() const { return kConverts ? steps() * kTileBytes : 2 * dim(); }
  char* place(int t) const { return kConverts ? to_ + ((before_ + t) & (kept_ - 1)) * size_ : to_; }

  // 64 elements of a row from d on, and zeros past its end.
  MAINBOARD_INLINE __m512i load_bytes(const char* row, int d) const {
    if constexpr (kDim != 0 && kDim % 64 == 0) return _mm512_loadu_si512(row + d);
    return d + 64 <= dim() ? _mm512_loadu_si512(row + d)
                           : _mm512_maskz_loadu_epi8(0xffffffff, row + d);
  }
  MAINBOARD_INLINE void convert_row(const char* row, char* to) const {
    for (int d = 0; d < dim(); d += 64, to += 2 * kTileBytes) {
      const Halves x = parted_halves_of(T{}, load_bytes(row, d));
      _mm512_storeu_si512(to, x.low);
      _mm512_storeu_si512(to + kTileBytes, x.high);
    }
  }
  __attribute__((noinline)) void convert_last(int first, int n, char* to) const {
    for (int i = first; i < first + n; ++i, to += stride()) {
      convert_row(rows_[i < count_ ? i : count_ - 1] + offset_, to);
    }
  }

  const char* const* rows_ = nullptr;
  int64_t offset_ = 0;
  int count_ = 0, tiles_ = 0, before_ = 0;
  char* to_;
  int64_t size_;
  int dim_, kept_;
};

// Scores of a block's keys: [set][key][lane]. `between(t, step)` is called after the products of a
// step of the t'th tile.
template <class T, int kDim, class Between>
MAINBOARD_INLINE void multiply_few_keys(const FewRowsSizes& sizes, const BlockRows<T, kDim>& k,
                                        const uint32_t* q, float* scores, Between&& between) {
  const int tiles = k.tiles(), steps = k.steps(), lanes = sizes.lanes();
  const uint32_t* second = q + steps * kTileWords;
  for (int t = 0; t < tiles; ++t, scores += kTile * lanes) {
    _tile_zero(0);
    if (sizes.sets == 2) {
      _tile_zero(1);
      for (int step = 0; step < steps; ++step) {
        const RowTile key = k.tile(t, step);
        _tile_stream_loadd(2, key.data, key.stride);
        _tile_loadd(3, q + step * kTileWords, kTileBytes);
        _tile_dpbf16ps(0, 2, 3);
        _tile_loadd(3, second + step * kTileWords, kTileBytes);
        _tile_dpbf16ps(1, 2, 3);
        between(t, step);
      }
      _tile_stored(1, scores + kFewKeys * kTile, kTileBytes);
    } else {
      for (int step = 0; step < steps; ++step) {
        const RowTile key = k.tile(t, step);
        _tile_stream_loadd(2, key.data, key.stride);
        _tile_loadd(1, q + step * kTile * lanes, 4 * lanes);
        _tile_dpbf16ps(0, 2, 1);
        between(t, step);
      }
    }
    _tile_stored(0, scores, 4 * lanes);
  }
}

// Adds a block's weighted values to the outputs of one key head. Values are words of two elements,
// as they are stored; each row has weights that meet the even ones and weights that meet the odd.
// Here both are in one tile.
template <class T, int kDim, class Between>
MAINBOARD_INLINE void multiply_single_values(const FewRowsSizes& sizes, const BlockRows<T, kDim>& v,
                                             const uint32_t* weights, float* output,
                                             Between&& between) {
  const int tiles = v.tiles(), words = 2 * sizes.width * kTile;
  auto load_values = [&](int t, int step) __attribute__((always_inline)) {
    const RowTile value = v.tile(t, step);
    _tile_stream_loadd(2, value.data, value.stride);
  };
  for (int begin = 0; begin < v.steps(); begin += kStepsAtOnce) {
    const int steps = v.steps() - begin;
    float* o = output + begin * words;
    _tile_loadd(4, o, kTileBytes);
    if (steps > 1) _tile_loadd(5, o + words, kTileBytes);
    if (steps > 2) _tile_loadd(6, o + 2 * words, kTileBytes);
    if (steps > 3) _tile_loadd(7, o + 3 * words, kTileBytes);
    for (int t = 0; t < tiles; ++t) {
      _tile_loadd(3, weights + t * words, kTileBytes);
      load_values(t, begin);
      _tile_dpbf16ps(4, 3, 2);
      between(t, begin);
      if (steps > 1) {
        load_values(t, begin + 1);
        _tile_dpbf16ps(5, 3, 2);
        between(t, begin + 1);
      }
      if (steps > 2) {
        load_values(t, begin + 2);
        _tile_dpbf16ps(6, 3, 2);
        between(t, begin + 2);
      }
      if (steps > 3) {
        load_values(t, begin + 3);
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
template <class T, int kDim, class Between>
MAINBOARD_INLINE void multiply_few_values(const FewRowsSizes& sizes, const BlockRows<T, kDim>& v,
                                          const uint32_t* weights, float* output,
                                          Between&& between) {
  const int tiles = v.tiles(), width = sizes.width * kTile;  // words of the last set's even weights
  const bool two = sizes.sets == 2, wide = !sizes.narrow();
  const uint32_t* last = weights + (sizes.sets - 1) * kWeightsOfSet;
  float* last_output = sizes.outputs(output, sizes.sets - 1).data;
  for (int step = 0; step < v.steps(); ++step) {
    float* o = output + step * 2 * kTileWords;
    float* p = last_output + step * 2 * width;
    _tile_loadd(4, p, kTileBytes);
    if (wide) _tile_loadd(6, p + width, kTileBytes);
    if (two) {
      _tile_loadd(0, o, kTileBytes);
      _tile_loadd(1, o + kTileWords, kTileBytes);
    }
    for (int t = 0; t < tiles; ++t) {
      const RowTile value = v.tile(t, step);
      const uint32_t *x = weights + t * 2 * kTileWords, *y = last + t * 2 * width;
      _tile_stream_loadd(2, value.data, value.stride);
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
      between(t, step);
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
