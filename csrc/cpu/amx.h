// Attention for many query rows on AMX tiles: bfloat16, and float16 as it is where the processor
// multiplies that (MAINBOARD_AMX_FP16), as pairs of bfloat16 where it does not.
//
// A work item's queries are packed once. Keys and values are packed a chunk at a time, small enough
// for the second-level cache, and every panel of 32 queries runs through the chunk's blocks while
// its output stays in the first. All panels' blocks form one stream (amx_step.h).
#pragma once

#include "csrc/cpu/amx_full_pairs.h"
#include "csrc/cpu/amx_shape.h"
#include "csrc/cpu/tile.h"

#if defined(__AMX_BF16__)

namespace mainboard::cpu::MAINBOARD_ISA {

constexpr int kTileBlockRows = 1024;
constexpr int kTilePanels = kTileBlockRows / kTilePanel;
constexpr int kMostChunkBlocks = 8;
constexpr int64_t kChunkFloats = 128 * 1024;  // of packed keys and values, at most
constexpr float kLowest = -3.0e38f;           // reference of a query that has seen no key

#if defined(MAINBOARD_AMX_FP16)
constexpr Operands kFloat16Operands = Operands::float16;
#else
constexpr Operands kFloat16Operands = Operands::pairs;
#endif
inline int tile_parts(const Attention& a) {
  return a.q.dtype == DType::f16 ? kParts<kFloat16Operands> : 1;
}

inline bool amx_serves(const Attention& a) {
  return a.q.dtype == a.k.dtype && (a.q.dtype == DType::bf16 || a.q.dtype == DType::f16);
}

// Sizes in floats, which are as large as tile words.
struct TileSizes {
  TileShape shape;
  int parts, chunk_blocks;
  int64_t q, o, k, v, weights;  // of one panel, of one block

  explicit TileSizes(const Attention& a) {
    shape = {tile_steps(a.head_dim), 2 * tile_steps(a.value_dim)};
    parts = tile_parts(a);
    q = int64_t{parts} * shape.steps * 2 * kTileWords;
    o = int64_t{shape.columns} * kTile * kTilePanel;
    k = int64_t{parts} * shape.steps * (kTileKeys / kTile) * kTileWords;
    v = int64_t{parts} * shape.columns * (kTileKeys / kTileDims) * kTileWords;
    weights = int64_t{parts} * (kTileKeys / kTileDims) * 2 * kTileWords;
    const int64_t fit = kChunkFloats / (k + v);
    chunk_blocks = static_cast<int>(clamp(fit, 1, kMostChunkBlocks));
  }
  int64_t total() const {
    return kTilePanels * (q + o) + chunk_blocks * (k + v) + 2 * (weights + kTileKeys * kTilePanel);
  }
};

inline int64_t amx_scratch_floats(const Attention& a) { return TileSizes(a).total(); }

// The stream of steps: each is the next, then the current, then the last one.
template <Operands kOperands, Score kScore>
class TileStream {
 public:
  TileStream(const Attention& a, const ScorePlan& plan, const TileSizes& sizes, float* scratch)
      : a_(a), plan_(plan), shape_(sizes.shape) {
    for (int i = 0; i < 3; ++i) {
      const int slot = i % 2;
      scores_[slot] = scratch + slot * kTileKeys * kTilePanel;
      weights_[slot] =
          reinterpret_cast<uint32_t*>(scratch + 2 * kTileKeys * kTilePanel + slot * sizes.weights);
    }
  }

  void push(TilePanel* panel, int64_t key, int depth, const uint32_t* k, const uint32_t* v) {
    TileStep& next = steps_[count_ % 3];
    next.panel = panel;
    next.depth = depth;
    next.k = k;
    next.v = v;
    next.key = key;
    next.scores = scores_[count_ % 2];
    next.weights = weights_[count_ % 2];
    next.shaped = next.moved = next.hidden_low = false;
    Vec top[2];
    run(&next, top);
    const bool hidden = panel->all_first > key || panel->all_last < key + depth * kTileDims - 1;
    const bool low = kScore == Score::capped && kLate<kOperands, kScore> && hidden &&
                     hide_low_products(plan_.factors, next, top);
    if (plan_.always_shaped || (hidden && !low && kScore == Score::capped)) {
      next.shaped = true;
      shape_exponents(a_, plan_.factors, next, top);
    } else if (hidden && !low) {
      hide_products<kScore>(plan_.factors, next, top);
    } else if (kLate<kOperands, kScore> && !hidden) {
      if (!panel->begun) find_peaks<kScore>(plan_.factors, next, top);
    }
    if (!kLate<kOperands, kScore> || !panel->begun || next.shaped || hidden) {
      follow_peak<kOperands>(next, top);
      panel->begun = true;
    }
    if (kLate<kOperands, kScore> && kScore == Score::linear) follow_rise(next);
    ++count_;
  }

  // Runs what is still under way.
  void drain() {
    if (count_ == 0) return;
    Vec no_peaks[2];  // nothing comes next
    run(nullptr, no_peaks);
    MAINBOARD_TILE_FENCE;
    for (int c = 0; c < shape_.columns; c += 2) {
      multiply_values<kOperands>(shape_, *now(), c, NoSlice());
    }
    MAINBOARD_TILE_FENCE;
    count_ = 0;
  }

 private:
  TileStep* now() { return count_ < 1 ? nullptr : &steps_[(count_ - 1) % 3]; }
  TileStep* before() { return count_ < 2 ? nullptr : &steps_[(count_ - 2) % 3]; }

  void run(const TileStep* next, Vec* top) {
    if (now() == nullptr) {
      MAINBOARD_TILE_FENCE;
      for (int i = 0; i < next->depth; ++i) multiply_keys<kOperands>(shape_, *next, i, NoSlice());
      if (!kLate<kOperands, kScore>) find_peaks<kScore>(plan_.factors, *next, top);
      return;
    }
    if (now()->shaped) {
      if (!run_step<kOperands, Score::plain, kScore>(shape_, plan_.factors, next, now(), before(),
                                                     top)) {
        soften_again<kOperands, Score::plain>(plan_.factors, *now());
      }
    } else if (!run_unshaped(next, top)) {
      if (now()->hidden_low) {
        shape_low(plan_.factors, *now());
        soften_again<kOperands, Score::plain>(plan_.factors, *now());
      } else {
        soften_again<kOperands, kScore>(plan_.factors, *now());
      }
    }
    if (now()->moved) keep_output(*now(), shape_);
  }

  // The current step, whose scores are not shaped. Under a softcap most scores are low, and only a
  // block that shows otherwise makes the next few be taken as high.
  bool run_unshaped(const TileStep* next, Vec* top) {
    if constexpr (kScore == Score::capped && kLate<kOperands, kScore>) {
      constexpr int kTakenAsHigh = 8;
      if (taken_as_high_ == 0 || now()->hidden_low) {
        const bool low = run_as<Score::low>(next, top);
        if (!low) taken_as_high_ = kTakenAsHigh;
        return low;
      }
      --taken_as_high_;
    }
    return run_as<kScore>(next, top);
  }

  template <Score kNow>
  bool run_as(const TileStep* next, Vec* top) {
    if constexpr (kLate<kOperands, kScore>) {
      if (next != nullptr && before() != nullptr && shape_.steps == kFullShape.steps &&
          shape_.columns == kFullShape.columns &&
          next->depth + now()->depth + before()->depth == 3 * kWeightDepth) {
        if constexpr (kOperands == Operands::pairs) {
          return run_full_pairs<kNow>(plan_.factors, *next, *now(), *before());
        } else {
          return run_full_step<kOperands, kNow>(plan_.factors, *next, *now(), *before());
        }
      }
    }
    return run_step<kOperands, kNow, kScore>(shape_, plan_.factors, next, now(), before(), top);
  }

  const Attention& a_;
  const ScorePlan& plan_;
  const TileShape shape_;
  TileStep steps_[3];
  float* scores_[2];
  uint32_t* weights_[2];
  int64_t count_ = 0;
  int taken_as_high_ = 0;  // blocks to come
};

// Everything of a panel but its queries and outputs; `query` gets its rows.
inline void begin_tile_panel(const Attention& a, const WorkItem& w, int64_t row, int64_t rows,
                             TilePanel& p, const char** query) {
  const int64_t shift = w.sequence.keys - w.sequence.queries;
  int64_t token = w.query_begin + row / a.group, head = row % a.group;
  p.begun = false;
  p.any_first = p.all_last = INT32_MAX;
  p.any_last = p.all_first = INT32_MIN;
  for (int lane = 0; lane < kTilePanel; ++lane) {
    const Span span = visible(a, w, token + shift);
    const auto first = static_cast<int32_t>(span.first), last = static_cast<int32_t>(span.last);
    query[lane] = a.q.at(w.sequence.query_begin + token, 0, w.first_head + head);
    p.reference[lane] = kLowest;
    p.sum[lane] = 0.0f;
    p.slope[lane] = a.alibi_slopes == nullptr ? 0.0f : a.alibi_slopes[w.first_head + head] * kLog2e;
    p.position[lane] = static_cast<int32_t>(token + shift);
    p.first[lane] = first;
    p.last[lane] = last;
    p.any_first = first < p.any_first ? first : p.any_first;
    p.any_last = last > p.any_last ? last : p.any_last;
    p.all_first = first > p.all_first ? first : p.all_first;
    p.all_last = last < p.all_last ? last : p.all_last;
    if (row + lane + 1 >= rows) continue;  // lanes past the last row repeat it; nobody reads them
    if (++head == a.group) {
      head = 0;
      ++token;
    }
  }
}

// Writes rows [row, row + n) of a work item from the panel that holds them.
inline void finish_tile_panel(const Attention& a, const WorkItem& w, int64_t row, int n,
                              const TilePanel& p) {
  const int dim = static_cast<int>(a.value_dim);
  for (int half = 0; half * kTile < n; ++half) {
    const int lanes = n - half * kTile < kTile ? n - half * kTile : kTile;
    char* to[kTile];
    float* lse[kTile];
    float sinks[kTile] = {};
    for (int lane = 0; lane < lanes; ++lane) {
      const int64_t r = row + half * kTile + lane;
      if (w.partial != nullptr) {
        float* part = w.partial + r * (dim + 1);
        to[lane] = reinterpret_cast<char*>(part);
        lse[lane] = part + dim;
        continue;
      }
      const int64_t index = w.sequence.query_begin + w.query_begin + r / a.group;
      const int64_t head = w.first_head + r % a.group;
      to[lane] = a.out.at(index, 0, head);
      lse[lane] = a.lse + head * a.lse_stride + index;
      if (a.sinks != nullptr) sinks[lane] = a.sinks[head] * kLog2e;
    }
    Vec reference = load(p.reference + half * kTile), sum = load(p.sum + half * kTile);
    Vec factor = set1(1.0f);
    if (w.partial == nullptr) {
      if (a.sinks != nullptr) {  // one more score, which brings no value
        const Vec sink = load(sinks), top = max(reference, sink);
        factor = exp2_exact(reference - top);
        sum = fma(sum, factor, exp2_exact(sink - top));
        reference = top;
      }
      factor = factor * set1(value_scale(a, w.kv_head));
    }
    const __mmask16 some = _mm512_cmp_ps_mask(sum, zero(), _CMP_NEQ_UQ);
    store_outputs(p.o + half * kTile, _mm512_maskz_div_ps(some, factor, sum), dim,
                  w.partial != nullptr ? DType::f32 : a.out.dtype, to, lanes);
    if (w.partial == nullptr && a.lse == nullptr) continue;
    float sums[kTile], references[kTile];
    store(sums, sum);
    store(references, reference);
    for (int lane = 0; lane < lanes; ++lane) {
      *lse[lane] = sums[lane] == 0.0f ? -INFINITY : references[lane] * kLn2 + std::log(sums[lane]);
    }
  }
}

template <Operands kOperands, Score kScore>
inline void attend_tiles(const Attention& a, const WorkItem& w, const ScorePlan& plan,
                         float* scratch) {
  const TileSizes sizes(a);
  const int dim = static_cast<int>(a.head_dim), value_dim = static_cast<int>(a.value_dim);
  float* next = scratch;
  auto take = [&](int64_t floats) {
    float* block = next;
    next += floats;
    return block;
  };
  float* stream_memory = take(2 * (sizes.weights + kTileKeys * kTilePanel));
  auto* keys = reinterpret_cast<uint32_t*>(take(sizes.chunk_blocks * sizes.k));
  auto* values = reinterpret_cast<uint32_t*>(take(sizes.chunk_blocks * sizes.v));

  const int64_t rows = (w.query_end - w.query_begin) * a.group;
  const int panels = static_cast<int>((rows + kTilePanel - 1) / kTilePanel);
  TilePanel panel[kTilePanels];
  for (int i = 0; i < panels; ++i) {
    const char* query[kTilePanel];
    begin_tile_panel(a, w, i * kTilePanel, rows, panel[i], query);
    auto* q = reinterpret_cast<uint32_t*>(take(sizes.q));
    pack_queries<kParts<kOperands>>(query, dim, q);
    panel[i].q = q;
    panel[i].o = take(sizes.o);
    std::memset(panel[i].o, 0, sizeof(float) * sizes.o);
  }

  const TileSession session;
  TileStream<kOperands, kScore> stream(a, plan, sizes, stream_memory);
  const int64_t chunk = int64_t{sizes.chunk_blocks} * kTileKeys;
  for (int64_t begin = w.key_begin; begin < w.key_end; begin += chunk) {
    const int64_t end = begin + chunk < w.key_end ? begin + chunk : w.key_end;
    const char* row[kTileKeys];
    for (int64_t key = begin, b = 0; key < end; key += kTileKeys, ++b) {
      const int n = static_cast<int>(clamp(end - key, 0, kTileKeys));
      key_rows(a.k, w.sequence, a.page_size, key, w.kv_head, n, row);
      pack_keys<kParts<kOperands>>(row, n, dim, keys + b * sizes.k);
      key_rows(a.v, w.sequence, a.page_size, key, w.kv_head, n, row);
      pack_values<kParts<kOperands>>(row, n, value_dim, values + b * sizes.v);
    }
    for (int i = 0; i < panels; ++i) {
      for (int64_t key = begin, b = 0; key < end; key += kTileKeys, ++b) {
        if (panel[i].any_last < key || panel[i].any_first >= key + kTileKeys) continue;
        // Half a block where the panel sees only that.
        const int skip = panel[i].any_first >= key + kTileDims ? 1 : 0;
        const int depth = (panel[i].any_last < key + kTileDims ? 1 : kWeightDepth) - skip;
        stream.push(&panel[i], key + skip * kTileDims, depth,
                    keys + b * sizes.k + skip * 2 * sizes.shape.steps * kTileWords,
                    values + b * sizes.v + skip * kTileWords);
      }
    }
    stream.drain();
  }
  for (int i = 0; i < panels; ++i) {
    const int64_t left = rows - i * kTilePanel;
    finish_tile_panel(a, w, i * kTilePanel, static_cast<int>(left < kTilePanel ? left : kTilePanel),
                      panel[i]);
  }
}

template <Operands kOperands>
inline void attend_scored(const Attention& a, const WorkItem& w, float* scratch) {
  const ScorePlan plan(a, w);
  switch (plan.score) {
    case Score::plain:
      return attend_tiles<kOperands, Score::plain>(a, w, plan, scratch);
    case Score::linear:
      return attend_tiles<kOperands, Score::linear>(a, w, plan, scratch);
    case Score::capped:
    case Score::low:
      return attend_tiles<kOperands, Score::capped>(a, w, plan, scratch);
  }
}

// Attends one work item of at most kTileBlockRows rows.
inline void attend_amx(const Attention& a, const WorkItem& w, float* scratch) {
  if (a.q.dtype == DType::f16) {
    attend_scored<kFloat16Operands>(a, w, scratch);
  } else {
    attend_scored<Operands::bfloat16>(a, w, scratch);
  }
}

}  // namespace mainboard::cpu::MAINBOARD_ISA

#endif  // __AMX_BF16__
