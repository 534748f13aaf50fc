// Attention for a few query rows (decode, verification) on AMX tiles: bfloat16 queries, and keys
// and values in bfloat16 or in one byte an element, which become bfloat16 as they are needed.
//
// Keys are the left-hand operand of the scores as they are stored, so that scores come out
// transposed (amx_lanes.h). Values are the right-hand operand of the outputs as they are stored:
// two elements of a key in a word, so that each row of weights is there twice, once for even
// elements and once for odd ones. A block's values are multiplied after the next block's keys: its
// softmax has those to hide behind.
#pragma once

#include "csrc/cpu/amx_blocks.h"

#if defined(__AMX_BF16__)

namespace mainboard::cpu::MAINBOARD_ISA {

constexpr int kFewRows = 2 * kTile;  // most rows of a key head that this kernel takes
constexpr int kMostKeyHeads = 8;     // that it reads in turn

inline bool few_rows_hold(const Attention& a) {
  return a.q.dtype == DType::bf16 && a.k.dtype == a.v.dtype &&
         (a.k.dtype == DType::bf16 || size_of(a.k.dtype) == 1) && a.head_dim % kTileDims == 0 &&
         a.value_dim % kTileDims == 0;
}
inline bool few_rows_serve(const Attention& a, const WorkItem& w) {
  return few_rows_hold(a) && (w.query_end - w.query_begin) * a.group <= kFewRows;
}

inline int64_t few_rows_scratch_floats(const Attention& a) {
  const int64_t dims = (row_steps<Int8>(a.head_dim) + row_steps<Int8>(a.value_dim)) * kTileDims;
  const int64_t queries_and_outputs = kMostKeyHeads * kFewRows * (kTile + dims);
  const int64_t scores = kFewRows * kFewKeys, weights = kFewRows / kTile * kWeightsOfSet;
  return queries_and_outputs + scores + weights + kFewKeys * dims;
}

// Asks for a row, into the second-level cache. Two lines at a time, because a row of bytes has no
// more and the loop itself is felt there. The empty statement keeps it: gcc leaves out functions
// that do nothing else.
MAINBOARD_INLINE void ask_row(const char* row, int64_t bytes) {
  int64_t b = 0;
  for (; b + 128 <= bytes; b += 128) {
    __builtin_prefetch(row + b, 0, 2);
    __builtin_prefetch(row + b + 64, 0, 2);
    asm volatile("");
  }
  for (; b < bytes; b += 64) {
    __builtin_prefetch(row + b, 0, 2);
    asm volatile("");
  }
}

// Rows that are to be asked for, some at a time.
template <class T, int kDim>
struct RowsAhead {
  const char* const* rows;
  int64_t offset, dim;
  int count;

  // [begin, end), as far as there are any.
  MAINBOARD_INLINE void ask(int begin, int end) const {
    const int64_t bytes = (kDim != 0 ? kDim : dim) * sizeof(T);
    if (end > count) end = count;
    for (int i = begin; i < end; ++i) ask_row(rows[i] + offset, bytes);
  }
};

// One work item, of at most kMostKeyHeads key heads. kDim is the head dimension of keys and of
// values, or 0 for any: conversions and prefetches are many and short, and loops are felt in them.
template <class T, int kDim>
class FewRows {
 public:
  FewRows(const Attention& a, const WorkItem& w, float* scratch)
      : a_(a),
        w_(w),
        sizes_(static_cast<int>((w.query_end - w.query_begin) * a.group), row_steps<T>(a.head_dim),
               row_steps<T>(a.value_dim)),
        memory_(scratch) {
    const int64_t heads = w.kv_heads;
    scores_ = take(kFewRows * kFewKeys);
    weights_ = reinterpret_cast<uint32_t*>(take(kFewRows / kTile * kWeightsOfSet));
    o_ = take(heads * sizes_.o);
    q_ = reinterpret_cast<uint32_t*>(take(heads * sizes_.q));
    rows_ = reinterpret_cast<char*>(take(kKept * sizes_.place_bytes() / 4));
    v_rows_ = reinterpret_cast<char*>(take(kFewKeys / kTile * sizes_.place_bytes() / 4));
    std::memset(o_, 0, sizeof(float) * heads * sizes_.o);
    for (int64_t head = 0; head < heads; ++head) begin_head(one_head(a, w, head), head);
  }

  void run() {
    const TileSession session;
    configure_few_rows(sizes_);
    KeyWalk walk(a_, w_);
    const bool all = keeps_values();
    Rows k(a_.head_dim, rows_, sizes_.place_bytes(), kKept);
    Rows v(a_.value_dim, Rows::kConverts && !all ? rows_ : v_rows_, sizes_.place_bytes(),
           all ? kFewKeys / kTile : kKept);
    Turn last, now, next;
    walk.take(&now.rows, &now.key, &now.head);
    k.begin(now.rows.k, now.rows.k_offset, now.rows.keys, 0);
    k.convert(0, 0, 1);
    while (now.rows.keys != 0) {
      walk.take(&next.rows, &next.key, &next.head);
      v.begin(last.rows.v, last.rows.v_offset, last.rows.keys, all ? 0 : k.converted());
      score(now, next, k, v);
      k.begin(next.rows.k, next.rows.k_offset, next.rows.keys, v.converted());
      add_values(last, now, k, v);
      soften(now.key, now.head, o_ + now.head * sizes_.o);
      last = now;
      now = next;
    }
    v.begin(last.rows.v, last.rows.v_offset, last.rows.keys, 0);
    for (int t = 0; t < (all ? v.tiles() : 1); ++t) v.convert(t, 0, 1);
    add_values(last, now, k, v);
    for (int64_t i = 0; i < w_.kv_heads; ++i) finish_head(one_head(a_, w_, i), i);
  }

 private:
  using Rows = BlockRows<T, kDim>;
  static constexpr int kKept = 2;  // times 16 rows, each used once: these and the next

  // Whether each value is used more than once, so that all of a block's are converted before.
  bool keeps_values() const {
    return Rows::kConverts && !(sizes_.single() && sizes_.value_steps <= kStepsAtOnce);
  }

  // A block, its first key and its head; without keys where there is none.
  struct Turn {
    KeyRows rows;
    int64_t key = 0, head = 0;
  };

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
      for (int i = 0; i < width; ++i) {
        const int row = set * kTile + (i < rows ? i : rows - 1);
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
      for (int i = width; i < kTile; ++i) {
        query[i] = query[i - width];
        first[i] = first[i - width];
        last[i] = last[i - width];
        position[i] = position[i - width];
        slope[i] = slope[i - width];
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
          word[j] = load_step<T>(query[j], step, a_.head_dim);
        }
        transpose_words(word);
        const int lanes = sizes_.lanes();
        const int64_t tile = set * sizes_.steps + step;
        store_tile(word, lanes, q_ + head * sizes_.q + tile * kTile * lanes);
      }
    }
  }

  // Scores of a block. While 16 keys are multiplied the next 16 are converted, and then the first
  // of the last block's values, or all of those where each is used more than once.
  void score(const Turn& now, const Turn& next, const Rows& keys, const Rows& values) {
    const Rows k = keys, v = values;  // which no store can change meanwhile
    const int steps = k.steps(), each = rows_a_step(steps), tiles = k.tiles();
    const bool all = keeps_values();
    const RowsAhead<T, kDim> ahead{next.rows.k, next.rows.k_offset, a_.head_dim, next.rows.keys};
    MAINBOARD_TILE_FENCE;
    multiply_few_keys(sizes_, k, q_ + now.head * sizes_.q, scores_,
                      [&](int t, int step) __attribute__((always_inline)) {
                        const int row = t * kTile + step * each;
                        ahead.ask(row, row + each);
                        k.convert(t + 1, step, steps);
                        if (all || t + 1 == tiles) v.convert(all ? t : 0, step, steps);
                      });
    MAINBOARD_TILE_FENCE;
    ahead.ask(tiles * kTile, kFewKeys);
    for (int t = tiles; all && t < v.tiles(); ++t) v.convert(t, 0, 1);
  }

  // Adds a block's values to its outputs. While those of 16 keys are multiplied the next 16 are
  // converted, and then the first of the next keys.
  void add_values(const Turn& turn, const Turn& next, const Rows& keys, const Rows& values) {
    const Rows k = keys, v = values;
    const int steps = v.steps(), each = rows_a_step(steps), tiles = v.tiles();
    const bool all = keeps_values();
    const RowsAhead<T, kDim> ahead{next.rows.v, next.rows.v_offset, a_.value_dim, next.rows.keys};
    auto ask = [&](int t, int step) __attribute__((always_inline)) {
      ahead.ask(t * kTile + step * each, t * kTile + (step + 1) * each);
    };
    float* o = o_ + turn.head * sizes_.o;
    MAINBOARD_TILE_FENCE;
    if (sizes_.single()) {
      multiply_single_values(sizes_, v, weights_, o,
                             [&](int t, int step) __attribute__((always_inline)) {
                               ask(t, step);
                               if (all) return;
                               v.convert(t + 1, step, steps);
                               if (t + 1 == tiles) k.convert(0, step, steps);
                             });
    } else {
      multiply_few_values(sizes_, v, weights_, o, ask);
    }
    MAINBOARD_TILE_FENCE;
    if (all || tiles == 0) k.convert(0, 0, 1);
    ahead.ask(tiles * kTile, kFewKeys);
  }

  void soften(int64_t key, int64_t head, float* o) {
    const LaneScores f(a_, w_.kv_head + head);
    LaneRows* lanes = lanes_[head];
    const int last = sizes_.sets - 1;
    float* scores = scores_ + last * kFewKeys * kTile;
    uint32_t* weights = weights_ + last * kWeightsOfSet;
    if (last == 1) soften_lanes<16, 16>(f, lanes[0], key, scores_, weights_, sizes_.outputs(o, 0));
    const LaneOutputs outputs = sizes_.outputs(o, last);
    if (sizes_.single() && sizes_.width == 4) {
      soften_lanes<4, 4>(f, lanes[last], key, scores, weights, outputs);
    } else if (sizes_.single()) {
      soften_lanes<8, 8>(f, lanes[last], key, scores, weights, outputs);
    } else if (sizes_.width == 4) {
      soften_lanes<4, 16>(f, lanes[last], key, scores, weights, outputs);
    } else if (sizes_.width == 8) {
      soften_lanes<8, 16>(f, lanes[last], key, scores, weights, outputs);
    } else {
      soften_lanes<16, 16>(f, lanes[last], key, scores, weights, outputs);
    }
  }

  void finish_head(const WorkItem& w, int64_t head) {
    float* line = scores_;
    for (int row = 0; row < sizes_.rows; ++row) {
      const int set = row / kTile, lane = row % kTile;
      const LaneRows& lanes = lanes_[head][set];
      const LaneOutputs outputs = sizes_.outputs(o_ + head * sizes_.o, set);
      for (int step = 0; step < sizes_.value_steps; ++step) {
        const float* even = outputs.data + (2 * step * outputs.width + lane) * kTile;
        finish_step(load(even), load(even + outputs.width * kTile), step, line);
      }
      alignas(64) float peak[kTile], sum[kTile];
      store(peak, lanes.peak);
      store(sum, sum_of_keys(lanes.sum, outputs.width));
      finish_row(a_, w, row, line, peak[lane] * kLn2, sum[lane]);
    }
  }
  // Puts the even and odd elements of a step where they belong.
  void finish_step(Vec even, Vec odd, int step, float* line) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    alignas(64) float both[2 * kTile];
    store(both, _mm512_permutex2var_ps(even, low, odd));
    store(both + kTile, _mm512_permutex2var_ps(even, high, odd));
    for (int i = 0; i < kEights; ++i) {
      const int d = element_of<T>(step, i);
      if (d < a_.value_dim) std::memcpy(line + d, both + 8 * i, 8 * sizeof(float));
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
  uint32_t *weights_, *q_;
  char *rows_, *v_rows_;
  LaneRows lanes_[kMostKeyHeads][kFewRows / kTile];
};

inline void attend_few_rows(const Attention& a, const WorkItem& w, float* scratch) {
  for (int64_t head = 0; head < w.kv_heads; head += kMostKeyHeads) {
    WorkItem some = one_head(a, w, head);
    some.kv_heads = clamp(w.kv_heads - head, 1, kMostKeyHeads);
    with_type(a.k.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      if constexpr (sizeof(T) == 1 || std::is_same_v<T, BFloat16>) {
        switch (a.head_dim == a.value_dim ? a.head_dim : 0) {
          case 64:
            return FewRows<T, 64>(a, some, scratch).run();
          case 128:
            return FewRows<T, 128>(a, some, scratch).run();
          case 256:
            return FewRows<T, 256>(a, some, scratch).run();
          default:
            return FewRows<T, 0>(a, some, scratch).run();
        }
      }
    });
  }
}

}  // namespace mainboard::cpu::MAINBOARD_ISA

#endif  // __AMX_BF16__
