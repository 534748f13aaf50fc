// A block of keys and values as operands of AMX tiles, and the products of a few query rows with
// it.
#pragma once

#include "csrc/cpu/amx_lanes.h"
#include "csrc/cpu/decode.h"
#include "csrc/cpu/halves.h"

#if defined(__AMX_BF16__)

namespace mainboard::cpu::MAINBOARD_ISA {

// The rows of one key head in tiles: the first 16 in tiles of 16, what is left in smaller ones,
// which cost less.
struct FewRowsSizes {
  int rows, sets;          // of up to 16 rows
  int last, width;         // rows of the last set, and its lanes
  int steps, value_steps;  // tiles along the elements
  int64_t q, o;            // words of one key head

  FewRowsSizes(const Attention& a, int64_t tokens) {
    rows = static_cast<int>(tokens * a.group);
    sets = (rows + kTile - 1) / kTile;
    last = rows - (sets - 1) * kTile;
    width = lane_width(last);
    steps = tile_steps(a.head_dim);
    value_steps = tile_steps(a.value_dim);
    q = int64_t{sets} * steps * kTileWords;
    o = int64_t{2} * value_steps * kTile * ((sets - 1) * kTile + width);
  }
  LaneOutputs outputs(float* o, int set) const {
    return {o + int64_t{2} * value_steps * kTileWords * set, set + 1 < sets ? kTile : width,
            2 * value_steps};
  }
};

// Eight tiles, of which 4, 5 and 6 have as many rows as the last set has.
inline void configure_few_rows(int rows) {
  alignas(64) uint8_t config[64] = {1};
  for (int t = 0; t < 8; ++t) {
    config[16 + 2 * t] = kTileBytes;
    config[48 + t] = static_cast<uint8_t>(t >= 4 && t <= 6 ? rows : kTile);
  }
  MAINBOARD_TILE_FENCE;
  _tile_loadconfig(config);
}

// Sixteen keys as a tile of bfloat16: the first row, and the way to the next.
struct KeyTile {
  const char* data;
  int64_t stride;
};

// A block's keys. What lies in bytes is converted into `to`; the rest stays where it is, but for
// the last rows, behind which not everything is ours to read.
template <class T>
class BlockKeys {
 public:
  BlockKeys(char* to, int dim) : to_(to), dim_(dim), stride_(2 * int64_t{dim}) {}

  void begin(const KeyRows& rows) {
    rows_ = rows;
    const int n = rows.keys, past = n % kTile;
    for (int i = n - past; kStays && i < n; ++i) {
      std::memcpy(to_ + i * stride_, rows.key<char>(i), stride_);
    }
    if (past != 0) std::memset(to_ + n * stride_, 0, (kTile - past) * stride_);
  }
  MAINBOARD_INLINE void convert(int i) {
    if constexpr (!kStays) {
      if (i >= rows_.keys) return;
      const T* from = rows_.key<T>(i);
      char* to = to_ + i * stride_;
      for (int d = 0; d < dim_; d += 2 * kTileDims, to += 2 * kTileBytes) {
        const bool more = d + kTileDims < dim_;
        const Halves x = more ? load_halves(from + d) : load_halves(from + d, kTileDims);
        _mm512_storeu_si512(to, x.low);
        if (more) _mm512_storeu_si512(to + kTileBytes, x.high);
      }
    }
  }
  MAINBOARD_INLINE KeyTile tile(int t) const {
    if (!kStays || t * kTile + kTile > rows_.keys) return {to_ + t * kTile * stride_, stride_};
    const char* row = rows_.key<char>(t * kTile);
    return {row, rows_.key<char>(t * kTile + 1) - row};
  }

 private:
  static constexpr bool kStays = std::is_same_v<T, BFloat16>;
  KeyRows rows_;
  char* to_;
  int dim_;
  int64_t stride_;
};

// A block's values as right-hand tiles [32 keys][column]: row j of a tile is keys j and 16 + j, its
// column the lower or the upper half of each 8 of 32 elements.
template <class T>
class BlockValues {
 public:
  BlockValues(uint32_t* to, int steps) : to_(to), steps_(steps) {}

  void begin(const KeyRows& rows) { rows_ = rows; }
  // The i'th of 32 pairs; keys past the last are zero.
  MAINBOARD_INLINE void pair(int i) {
    const int even = i / kTile * kTileDims + i % kTile, odd = even + kTile;
    uint32_t* to = to_ + i / kTile * 2 * steps_ * kTileWords + i % kTile * kTile;
    if (even / kTileDims * kTileDims >= rows_.keys) return;  // a tile without keys is left out
    const char* first = even < rows_.keys ? rows_.value<char>(even) : nullptr;
    const char* second = odd < rows_.keys ? rows_.value<char>(odd) : nullptr;
    if constexpr (std::is_same_v<T, BFloat16>) {
      const __m512i none = _mm512_setzero_si512();
      for (int step = 0; step < steps_; ++step) {
        const int64_t at = step * kTileBytes;
        store_pair(first == nullptr ? none : _mm512_loadu_si512(first + at),
                   second == nullptr ? none : _mm512_loadu_si512(second + at), step, to);
      }
    } else {
      const auto load = [&](const char* row, int step, bool more) {
        if (row == nullptr) return Halves{_mm512_setzero_si512(), _mm512_setzero_si512()};
        const T* from = reinterpret_cast<const T*>(row) + step * kTileDims;
        return more ? load_halves(from) : load_halves(from, kTileDims);
      };
      for (int step = 0; step < steps_; step += 2) {
        const bool more = step + 1 < steps_;
        const Halves x = load(first, step, more), y = load(second, step, more);
        store_pair(x.low, y.low, step, to);
        if (more) store_pair(x.high, y.high, step + 1, to);
      }
    }
  }
  const uint32_t* tile(int depth, int column) const {
    return to_ + (depth * 2 * steps_ + column) * kTileWords;
  }

 private:
  static MAINBOARD_INLINE void store_pair(__m512i even, __m512i odd, int step, uint32_t* to) {
    to += 2 * step * kTileWords;
    _mm512_storeu_si512(to, _mm512_unpacklo_epi16(even, odd));
    _mm512_storeu_si512(to + kTileWords, _mm512_unpackhi_epi16(even, odd));
  }

  KeyRows rows_;
  uint32_t* to_;
  int steps_;
};

// Scores of a block's keys: [set][key][16 rows]. `between` is called after each product or two.
template <class T, class Between>
MAINBOARD_INLINE void multiply_few_keys(const FewRowsSizes& sizes, const BlockKeys<T>& k,
                                        const uint32_t* q, int tiles, float* scores,
                                        Between&& between) {
  constexpr int64_t kSet = kTileKeys * kTile;
  if (sizes.sets == 2) {
    const uint32_t* second = q + sizes.steps * kTileWords;
    for (int t = 0; t < tiles; ++t) {
      const KeyTile key = k.tile(t);
      _tile_zero(0);
      _tile_zero(1);
      for (int step = 0; step < sizes.steps; ++step) {
        _tile_loadd(2, key.data + step * kTileBytes, key.stride);
        _tile_loadd(3, q + step * kTileWords, kTileBytes);
        _tile_dpbf16ps(0, 2, 3);
        _tile_loadd(7, second + step * kTileWords, kTileBytes);
        _tile_dpbf16ps(1, 2, 7);
        between();
      }
      _tile_stored(0, scores + t * kTileWords, kTileBytes);
      _tile_stored(1, scores + kSet + t * kTileWords, kTileBytes);
    }
    return;
  }
  for (int t = 0; t < tiles; t += 2) {
    const KeyTile key = k.tile(t), next = k.tile(t + 1 < tiles ? t + 1 : t);
    _tile_zero(0);
    _tile_zero(1);
    for (int step = 0; step < sizes.steps; ++step) {
      _tile_loadd(3, q + step * kTileWords, kTileBytes);
      _tile_loadd(2, key.data + step * kTileBytes, key.stride);
      _tile_dpbf16ps(0, 2, 3);
      between();
      _tile_loadd(7, next.data + step * kTileBytes, next.stride);
      _tile_dpbf16ps(1, 7, 3);
      between();
    }
    _tile_stored(0, scores + t * kTileWords, kTileBytes);
    _tile_stored(1, scores + (t + 1) * kTileWords, kTileBytes);
  }
}

// Adds a block's weighted values to the outputs of one key head.
template <class T, class Between>
MAINBOARD_INLINE void multiply_few_values(const FewRowsSizes& sizes, const BlockValues<T>& v,
                                          const uint32_t* weights, int depths, float* output,
                                          Between&& between) {
  const int width = sizes.width * kTile;  // words of a tile of the last set
  const bool two = sizes.sets == 2, deep = depths == 2;
  const uint32_t* last = weights + (sizes.sets - 1) * kWeightDepth * kTileWords;
  float* last_output = sizes.outputs(output, sizes.sets - 1).data;
  if (two) _tile_loadd(0, weights, kTileBytes);
  if (two && deep) _tile_loadd(1, weights + kTileWords, kTileBytes);
  _tile_loadd(4, last, kTileBytes);
  if (deep) _tile_loadd(5, last + width, kTileBytes);
  for (int column = 0; column < 2 * sizes.value_steps; ++column) {
    float* o = output + column * kTileWords;
    float* p = last_output + column * width;
    _tile_loadd(2, v.tile(0, column), kTileBytes);
    _tile_loadd(6, p, kTileBytes);
    _tile_dpbf16ps(6, 4, 2);
    if (two) {
      _tile_loadd(3, o, kTileBytes);
      _tile_dpbf16ps(3, 0, 2);
    }
    if (deep) {
      _tile_loadd(7, v.tile(1, column), kTileBytes);
      _tile_dpbf16ps(6, 5, 7);
      if (two) _tile_dpbf16ps(3, 1, 7);
    }
    between();
    _tile_stored(6, p, kTileBytes);
    if (two) _tile_stored(3, o, kTileBytes);
  }
}

}  // namespace mainboard::cpu::MAINBOARD_ISA

#endif  // __AMX_BF16__
