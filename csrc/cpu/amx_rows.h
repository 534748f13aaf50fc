// Attention for a few query rows (decode, verification) on AMX tiles: bfloat16 queries, and keys
// and values in bfloat16 or in one byte an element, which become bfloat16 a block at a time.
//
// Keys are the left-hand operand of the scores as they are stored, so that scores come out
// transposed (amx_lanes.h). Values are the right-hand operand of the outputs: two keys' elements in
// a word, which takes one shuffle a vector, and columns in the shuffle's order. While a block's
// keys are multiplied its values are paired, and meanwhile the next block is asked for.
#pragma once

#include "csrc/cpu/amx_blocks.h"

#if defined(__AMX_BF16__)

namespace mainboard::cpu::MAINBOARD_ISA {

constexpr int kFewRows = 2 * kTile;  // most rows of a key head that this kernel takes
constexpr int kMostKeyHeads = 8;     // that it reads in turn
static_assert(kTileKeys == kDotKeys);

inline bool few_rows_hold(const Attention& a) {
  return a.q.dtype == DType::bf16 && a.k.dtype == a.v.dtype &&
         (a.k.dtype == DType::bf16 || size_of(a.k.dtype) == 1) && a.head_dim % kTileDims == 0 &&
         a.value_dim % kTileDims == 0;
}
inline bool few_rows_serve(const Attention& a, const WorkItem& w) {
  return few_rows_hold(a) && (w.query_end - w.query_begin) * a.group <= kFewRows;
}

inline int64_t few_rows_scratch_floats(const Attention& a) {
  const int64_t dims = a.head_dim + a.value_dim;
  const int64_t queries_and_outputs = kMostKeyHeads * kFewRows * (kTile + dims);
  const int64_t scores = kFewRows * kTileKeys, weights = kFewRows * kTileKeys / 2;
  return queries_and_outputs + scores + weights + kTileKeys * dims / 2;
}

// Asks for a row, into the second-level cache. The empty statement keeps it: gcc leaves out
// functions that do nothing else.
MAINBOARD_INLINE void ask_row(const char* row, int64_t bytes) {
  for (int64_t b = 0; b < bytes; b += 64) {
    __builtin_prefetch(row + b, 0, 2);
    asm volatile("");
  }
}

// So many rows in equal portions, one after each piece of other work.
class Portions {
 public:
  Portions(int rows, int pieces) : rows_(rows), each_((rows + pieces - 1) / pieces) {}

  template <class Row>
  MAINBOARD_INLINE void next(Row&& row) {
    const int end = at_ + each_ < rows_ ? at_ + each_ : rows_;
    for (; at_ < end; ++at_) row(at_);
  }

 private:
  int rows_, each_, at_ = 0;
};

// One work item, of at most kMostKeyHeads key heads.
template <class T>
class FewRows {
 public:
  FewRows(const Attention& a, const WorkItem& w, float* scratch)
      : a_(a), w_(w), sizes_(a, w.query_end - w.query_begin), memory_(scratch) {
    const int64_t heads = w.kv_heads;
    scores_ = take(kFewRows * kTileKeys);
    weights_ = reinterpret_cast<uint32_t*>(take(kFewRows * kTileKeys / 2));
    o_ = take(heads * sizes_.o);
    q_ = reinterpret_cast<uint32_t*>(take(heads * sizes_.q));
    k_rows_ = reinterpret_cast<char*>(take(kTileKeys * a.head_dim / 2));
    v_tiles_ = reinterpret_cast<uint32_t*>(take(kTileKeys * a.value_dim / 2));
    std::memset(o_, 0, sizeof(float) * heads * sizes_.o);
    for (int64_t head = 0; head < heads; ++head) begin_head(one_head(a, w, head), head);
  }

  void run() {
    const TileSession session;
    configure_few_rows(sizes_.last);
    KeyWalk walk(a_, w_);
    Block block;
    int64_t key = 0, head = 0;
    BlockKeys<T> k(k_rows_, static_cast<int>(a_.head_dim));
    BlockValues<T> v(v_tiles_, sizes_.value_steps);
    bool more = walk.take(&block.next, &key, &head);
    k.begin(block.next);
    for (int i = 0; i < block.next.keys; ++i) k.convert(i);
    while (more) {
      block.now = block.next;
      const int64_t begin = key, now = head;
      more = walk.take(&block.next, &key, &head);
      attend(block, k, v, begin, now);
    }
    for (int64_t i = 0; i < w_.kv_heads; ++i) finish_head(one_head(a_, w_, i), i);
  }

 private:
  float* take(int64_t floats) {
    float* block = memory_;
    memory_ += floats;
    return block;
  }

  void begin_head(const WorkItem& w, int64_t head) {
    for (int set = 0; set < sizes_.sets; ++set) {
      const int width = sizes_.outputs(o_, set).width;
      const int rows = set + 1 < sizes_.sets ? kTile : sizes_.last;
      const char* query[kTile];
      alignas(64) int32_t first[kTile], last[kTile], position[kTile];
      alignas(64) float slope[kTile];
      LaneRows& lanes = lanes_[head][set];
      lanes.all_first = 0;
      lanes.all_last = kUnbounded;
      for (int i = 0; i < kTile; ++i) {
        const int in_set = i % width < rows ? i % width : rows - 1, row = set * kTile + in_set;
        const int64_t token = w.query_begin + row / a_.group, q = w.first_head + row % a_.group;
        const int64_t at = token + w.sequence.keys - w.sequence.queries;
        const Span span = visible(a_, w, at);
        query[i] = a_.q.at(w.sequence.query_begin + token, 0, q);
        first[i] = static_cast<int32_t>(span.first);
        last[i] = static_cast<int32_t>(span.last);
        position[i] = static_cast<int32_t>(at);
        slope[i] = a_.alibi_slopes == nullptr ? 0.0f : a_.alibi_slopes[q] * kLog2e;
        if (span.first > lanes.all_first) lanes.all_first = span.first;
        if (span.last < lanes.all_last) lanes.all_last = span.last;
      }
      lanes.peak = set1(kLowest);
      lanes.sum = zero();
      lanes.slope = load(slope);
      lanes.first = _mm512_load_si512(first);
      lanes.last = _mm512_load_si512(last);
      lanes.position = _mm512_load_si512(position);
      for (int step = 0; step < sizes_.steps; ++step) {
        __m512i word[kTile];
        for (int j = 0; j < kTile; ++j) {
          word[j] = _mm512_loadu_si512(query[j] + step * kTileBytes);
        }
        transpose_words(word);
        store_tile(word, q_ + head * sizes_.q + (set * sizes_.steps + step) * kTileWords);
      }
    }
  }

  void attend(const Block& block, BlockKeys<T>& k, BlockValues<T>& v, int64_t key, int64_t head) {
    const KeyRows &now = block.now, &next = block.next;
    const int tiles = (now.keys + kTile - 1) / kTile;
    const int64_t k_bytes = a_.head_dim * sizeof(T), v_bytes = a_.value_dim * sizeof(T);
    float* o = o_ + head * sizes_.o;
    MAINBOARD_TILE_FENCE;
    v.begin(now);
    Portions pairs(kTileKeys / 2, tiles * sizes_.steps);
    auto between_keys = [&]() __attribute__((always_inline)) {
      pairs.next([&](int i) __attribute__((always_inline)) {
        if (2 * i < next.keys) ask_row(next.key<char>(2 * i), k_bytes);
        if (2 * i + 1 < next.keys) ask_row(next.key<char>(2 * i + 1), k_bytes);
        v.pair(i);
      });
    };
    multiply_few_keys(sizes_, k, q_ + head * sizes_.q, tiles, scores_, between_keys);
    MAINBOARD_TILE_FENCE;
    soften(key, head, o);
    k.begin(next);
    MAINBOARD_TILE_FENCE;
    Portions rows(kTileKeys, 2 * sizes_.value_steps);
    auto between_values = [&]() __attribute__((always_inline)) {
      rows.next([&](int i) __attribute__((always_inline)) {
        if (i < next.keys) ask_row(next.value<char>(i), v_bytes);
        k.convert(i);
      });
    };
    multiply_few_values(sizes_, v, weights_, (tiles + 1) / 2, o, between_values);
    MAINBOARD_TILE_FENCE;
  }

  void soften(int64_t key, int64_t head, float* o) {
    const LaneScores f(a_, w_.kv_head + head);
    LaneRows* lanes = lanes_[head];
    const int last = sizes_.sets - 1;
    float* scores = scores_ + last * kTileKeys * kTile;
    uint32_t* weights = weights_ + last * kWeightDepth * kTileWords;
    if (last == 1) soften_lanes<16>(f, lanes[0], key, scores_, weights_, sizes_.outputs(o, 0));
    const LaneOutputs outputs = sizes_.outputs(o, last);
    if (sizes_.width == 4) {
      soften_lanes<4>(f, lanes[last], key, scores, weights, outputs);
    } else if (sizes_.width == 8) {
      soften_lanes<8>(f, lanes[last], key, scores, weights, outputs);
    } else {
      soften_lanes<16>(f, lanes[last], key, scores, weights, outputs);
    }
  }

  void finish_head(const WorkItem& w, int64_t head) {
    float* line = scores_;
    for (int row = 0; row < sizes_.rows; ++row) {
      const int set = row / kTile, lane = row % kTile;
      const LaneRows& lanes = lanes_[head][set];
      const LaneOutputs outputs = sizes_.outputs(o_ + head * sizes_.o, set);
      for (int column = 0; column < outputs.columns; ++column) {
        const float* from = outputs.data + (column * outputs.width + lane) * kTile;
        store(line + column * kTile, load(from));
      }
      part_values(line, static_cast<int>(a_.value_dim));
      alignas(64) float peak[kTile], sum[kTile];
      store(peak, lanes.peak);
      store(sum, sum_of_keys(lanes.sum, outputs.width));
      finish_row(a_, w, row, line, peak[lane] * kLn2, sum[lane]);
    }
  }
  static Vec sum_of_keys(Vec sum, int width) {
    auto add = [](Vec x, Vec y) { return x + y; };
    return width == 4 ? across_keys<4>(sum, add) : width == 8 ? across_keys<8>(sum, add) : sum;
  }

  const Attention& a_;
  const WorkItem& w_;
  FewRowsSizes sizes_;
  float* memory_;
  float *scores_, *o_;
  uint32_t *weights_, *q_, *v_tiles_;
  char* k_rows_;
  LaneRows lanes_[kMostKeyHeads][kFewRows / kTile];
};

inline void attend_few_rows(const Attention& a, const WorkItem& w, float* scratch) {
  for (int64_t head = 0; head < w.kv_heads; head += kMostKeyHeads) {
    WorkItem some = one_head(a, w, head);
    some.kv_heads = clamp(w.kv_heads - head, 1, kMostKeyHeads);
    with_type(a.k.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      if constexpr (sizeof(T) == 1 || std::is_same_v<T, BFloat16>) {
        FewRows<T>(a, some, scratch).run();
      }
    });
  }
}

}  // namespace mainboard::cpu::MAINBOARD_ISA

#endif  // __AMX_BF16__
