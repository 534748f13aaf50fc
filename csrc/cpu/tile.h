// Attention for many query rows at once (prefill): queries lie in the lanes.
//
// Both products are taken transposed, S^T = K Q^T and O^T = V^T P^T, as in FlashAttention's online
// softmax but with a key's row broadcast against a panel of queries. K and V are then read nearly
// as they are stored; the maximum and the sum of a query's scores are lane-wise; and Q is
// transposed once for the whole block. What is multiplied are words of 32 bits in one of two
// formats (formats.h): a float32, or two bfloat16 that follow each other along the sum.
#pragma once

#include "csrc/cpu/ahead.h"
#include "csrc/cpu/formats.h"
#include "csrc/cpu/panel.h"

namespace mainboard::cpu::MAINBOARD_ISA {

// kAccumulators and their operands fill the registers.
#if defined(__AVX512F__)
constexpr int kAccumulators = 24;
#else
constexpr int kAccumulators = 12;
#endif
constexpr int kBlockRows = 384;
// One block's queries, outputs, keys and values stay within the second-level cache.
constexpr int kPanelsPerBlock = kBlockRows / kPanel;
constexpr int kBlockKeys = 64;
constexpr int kKeyStep = 8;

// Rows that one product takes at a time.
constexpr int wide(int vecs) { return kAccumulators / vecs > 8 ? 8 : kAccumulators / vecs; }

// A block's queries, outputs and values, and the next block's keys and values.
using BlockAhead = Ahead<2 * kBlockRows + 3 * kBlockKeys>;

// What becomes of what lay where a product goes.
enum class Before { kLost, kKept, kScaled };

// C[r][:] = C[r][:] * keep + sum_k a[r * row + k * step] * B[k][:], for R rows of NV vectors, k
// below end[v] for vector v: later vectors have no fewer terms. B and C have kPanel columns.
// `before` says whether there is a C, and whether it is scaled.
template <class Format, int R, int NV>
inline void multiply_rows(const int* end, const float* a, int64_t row, int64_t step, const float* b,
                          Before before, const Vec* keep, float* c) {
  Vec acc[R][NV];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      acc[r][v] = before == Before::kLost ? zero() : load(c + r * kPanel + v * kLanes);
      if (before == Before::kScaled) acc[r][v] = acc[r][v] * keep[v];
    }
  }
  int k = 0;
#pragma GCC unroll 4
  for (int first = 0; first < NV; ++first) {
    for (; k < end[first]; ++k, a += step, b += kPanel) {
      Vec operand[NV];
#pragma GCC unroll 4
      for (int v = first; v < NV; ++v) operand[v] = load(b + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Vec scalar = set1(a[r * row]);
#pragma GCC unroll 4
        for (int v = first; v < NV; ++v) {
          acc[r][v] = Format::multiply(scalar, operand[v], acc[r][v]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(c + r * kPanel + v * kLanes, acc[r][v]);
  }
}

// The same for any number of rows, asking for what comes next meanwhile.
template <class Format, int NV>
inline void multiply(int rows, const int* end, const float* a, int64_t row, int64_t step,
                     const float* b, Before before, const Vec* keep, float* c, BlockAhead& ahead) {
  constexpr int kWide = wide(NV);
  int r = 0;
  for (; r + kWide <= rows; r += kWide) {
    ahead.ask();
    multiply_rows<Format, kWide, NV>(end, a + r * row, row, step, b, before, keep, c + r * kPanel);
  }
  if constexpr (kWide > 4) {
    for (; r + 4 <= rows; r += 4) {
      multiply_rows<Format, 4, NV>(end, a + r * row, row, step, b, before, keep, c + r * kPanel);
    }
  }
  for (; r < rows; ++r) {
    multiply_rows<Format, 1, NV>(end, a + r * row, row, step, b, before, keep, c + r * kPanel);
  }
}

// A block of keys and values, as words.
struct KeyBlock {
  int dim, value_dim;  // words of a key's row, elements of a value's
  float scale;         // of products
  float *k, *v;        // [kBlockKeys][dim], [kBlockKeys / kPack][value_dim]
  float* lines;        // working memory for some rows
  int64_t key;         // the first
  int count;
  bool has_values;
};

template <class Format>
inline void load_keys(const Attention& a, const WorkItem& w, KeyBlock& block) {
  const char* stored[kBlockKeys];
  key_rows(a.k, w.sequence, a.page_size, block.key, w.kv_head, block.count, stored);
  Format::load_keys(a.k.dtype, stored, block.count, static_cast<int>(a.head_dim), block.k);
  block.has_values = false;
}

// The values are not read until there are weights for them: they arrive meanwhile.
template <class Format>
inline void load_values(const Attention& a, const WorkItem& w, KeyBlock& block) {
  if (block.has_values) return;
  const char* stored[kBlockKeys];
  key_rows(a.v, w.sequence, a.page_size, block.key, w.kv_head, block.count, stored);
  Format::load_values(a.v.dtype, stored, block.count, block.value_dim, block.lines, block.v);
  block.has_values = true;
}

template <class Format>
inline void load_queries(const Attention& a, const WorkItem& w, int64_t row, int64_t rows,
                         Panel& p) {
  const int dim = static_cast<int>(a.head_dim);
  const float scale = score_scale(a, w.kv_head);
  RowCursor at(a, w, row);
  for (int first = 0; first < p.vecs * kLanes; first += kLanes) {
    const char* stored[kLanes];
    for (int j = 0; j < kLanes; ++j) {
      stored[j] = a.q.at(w.sequence.query_begin + at.token, 0, at.head);
      if (row + first + j + 1 < rows) at.next();
    }
    Format::load_queries(a.q.dtype, stored, scale, dim, p.q + first, kPanel);
  }
}

// Rows of q or of the output, those of a work item from `first` on.
inline void look_ahead(const Attention& a, const WorkItem& w, const Rows& tokens, int64_t dim,
                       int64_t first, int64_t rows, BlockAhead& ahead) {
  if (rows <= first) return;
  const int count = static_cast<int>(rows - first);
  const char** to = ahead.add(count, dim * size_of(tokens.dtype));
  RowCursor at(a, w, first);
  for (int i = 0; i < count; ++i, at.next()) {
    to[i] = tokens.at(w.sequence.query_begin + at.token, 0, at.head);
  }
}

// Keys or values.
inline void look_ahead(const Attention& a, const WorkItem& w, const Rows& rows, int64_t dim,
                       int64_t key, BlockAhead& ahead) {
  const int n = static_cast<int>(clamp(w.key_end - key, 0, kBlockKeys));
  if (n == 0) return;
  const char** to = ahead.add(n, dim * size_of(rows.dtype));
  key_rows(rows, w.sequence, a.page_size, key, w.kv_head, n, to);
}

// How often the products of a block of keys will ask for what comes next.
inline int64_t asks(const Panel* panel, int panels, int64_t key, int n, int64_t value_dim) {
  int64_t calls = 0;
  for (int i = 0; i < panels; ++i) {
    const Panel& p = panel[i];
    if (!sees(p, key, n)) continue;
    const int64_t seen = clamp(p.any.last + 1 - key, 0, n) - clamp(p.any.first - key, 0, n);
    calls += (seen + value_dim) / wide(p.vecs);
  }
  return calls;
}

// What is needed during a block of keys, but not at once, and after it. The rows of the output are
// spread over the last blocks, as most panels do not see all of the last one.
inline void look_ahead(const Attention& a, const WorkItem& w, const Panel* panel, int panels,
                       int64_t key, BlockAhead& ahead) {
  constexpr int64_t kLastBlocks = 4;
  const int64_t rows = (w.query_end - w.query_begin) * a.group, next = key + kBlockKeys;
  ahead.clear();
  if (key == w.key_begin) {
    look_ahead(a, w, a.v, a.value_dim, key, ahead);
    look_ahead(a, w, a.q, a.head_dim, kPanel, rows, ahead);
  }
  look_ahead(a, w, a.k, a.head_dim, next, ahead);
  look_ahead(a, w, a.v, a.value_dim, next, ahead);
  const int64_t blocks = (w.key_end - w.key_begin + kBlockKeys - 1) / kBlockKeys;
  const int64_t last = blocks < kLastBlocks ? blocks : kLastBlocks;
  const int64_t turn = (key - w.key_begin) / kBlockKeys - (blocks - last);
  if (turn >= 0 && w.partial == nullptr) {
    look_ahead(a, w, a.out, a.value_dim, rows * turn / last, rows * (turn + 1) / last, ahead);
  }
  const int n = static_cast<int>(clamp(w.key_end - key, 0, kBlockKeys));
  ahead.spread(asks(panel, panels, key, n, a.value_dim));
}

// Scores of the first seen[v] keys for each vector v, or of a few more.
template <class Format, int NV>
inline void multiply_keys(const int* seen, int dim, const float* k, const float* q, float* scores,
                          BlockAhead& ahead) {
  int dims[NV], all = (seen[0] + kKeyStep - 1) / kKeyStep * kKeyStep;
  for (int& end : dims) end = dim;
  if (NV == 1 || all > seen[NV - 1]) all = seen[NV - 1];
  multiply<Format, NV>(all, dims, k, dim, 1, q, Before::kLost, nullptr, scores, ahead);
  if constexpr (NV > 1) {
    if (all == seen[NV - 1]) return;
    int rest[NV - 1];
    for (int v = 1; v < NV; ++v) rest[v - 1] = seen[v] > all ? seen[v] - all : 0;
    multiply_keys<Format, NV - 1>(rest, dim, k + all * dim, q + kLanes,
                                  scores + all * kPanel + kLanes, ahead);
  }
}

// One panel against the keys [key, key + n).
template <class Format, int NV>
inline void attend_panel(const Attention& a, const WorkItem& w, Panel& p, KeyBlock& block,
                         int64_t key, int n, float* scores, BlockAhead& ahead) {
  constexpr int kPack = Format::kPack;
  const int dim = block.dim, value_dim = block.value_dim;
  const int64_t from = key - block.key;
  int seen[NV];
  for (int v = 0; v < NV; ++v) seen[v] = static_cast<int>(clamp(p.end[v] - key, 0, n));
  multiply_keys<Format, NV>(seen, dim, block.k + from * dim, p.q, scores, ahead);
  const float factor = shape_scores<NV>(a, p, key, n, block.scale, scores);
  for (; n % kPack != 0; ++n) {
    for (int i = 0; i < kPanel; ++i) scores[n * kPanel + i] = -INFINITY;
  }
  Vec keep[NV];
  const bool moved = soften<Format, NV>(p, n, factor, scores, keep);
  const Before before = !p.touched ? Before::kLost : (moved ? Before::kScaled : Before::kKept);
  load_values<Format>(a, w, block);
  for (int& end : seen) end = (end + kPack - 1) / kPack;
  multiply<Format, NV>(value_dim, seen, block.v + from / kPack * value_dim, 1, value_dim, scores,
                       before, keep, p.o, ahead);
  p.touched = true;
}

// One panel against those keys of a block that some query of it sees, in whole steps of the
// product's rows.
template <class Format>
inline void attend_panel(const Attention& a, const WorkItem& w, Panel& p, KeyBlock& block,
                         float* scores, BlockAhead& ahead) {
  const int64_t key = block.key, n = block.count;
  const int64_t skip = clamp(p.any.first - key, 0, n) / kKeyStep * kKeyStep, from = key + skip;
  const int seen = static_cast<int>(clamp(p.any.last + 1 - key, 0, n) - skip);
  if (p.vecs == 1) {
    attend_panel<Format, 1>(a, w, p, block, from, seen, scores, ahead);
  } else if (p.vecs == 2) {
    attend_panel<Format, 2>(a, w, p, block, from, seen, scores, ahead);
  } else {
    attend_panel<Format, 3>(a, w, p, block, from, seen, scores, ahead);
  }
}

// Where a work item's parts lie in its working memory, in floats.
struct TileMemory {
  int64_t q, o, k, v, scores, lines;

  template <class Format>
  static TileMemory of(const Attention& a) {
    const int64_t q = whole_vecs(Format::words(a.head_dim)), o = whole_vecs(a.value_dim);
    return {q * kPanel,
            o * kPanel,
            kBlockKeys * Format::words(a.head_dim),
            kBlockKeys / Format::kPack * a.value_dim,
            kBlockKeys * kPanel,
            2 * (q > o ? q : o)};
  }
  int64_t total() const { return kPanelsPerBlock * (q + o) + k + v + scores + lines + kLanes; }
};

// Attends one work item of at most kPanelsPerBlock panels of rows.
template <class Format>
inline void attend_blocks(const Attention& a, const WorkItem& w, float* scratch) {
  const TileMemory memory = TileMemory::of<Format>(a);
  float* state = scratch;
  float* scores = state + kPanelsPerBlock * (memory.q + memory.o);
  float* lines = scores + memory.scores;
  float* k = lines + memory.lines;
  KeyBlock block{static_cast<int>(Format::words(a.head_dim)),
                 static_cast<int>(a.value_dim),
                 Format::kScalesQueries ? 1.0f : score_scale(a, w.kv_head),
                 k,
                 k + memory.k,
                 lines,
                 0,
                 0,
                 false};

  const int64_t rows = (w.query_end - w.query_begin) * a.group;
  const int panels = static_cast<int>((rows + kPanel - 1) / kPanel);
  Panel panel[kPanelsPerBlock];
  for (int i = 0; i < panels; ++i) {
    panel[i].q = state + i * (memory.q + memory.o);
    panel[i].o = panel[i].q + memory.q;
    const int64_t left = rows - i * kPanel;
    const int64_t in_panel = left < kPanel ? left : kPanel;
    begin_panel(a, w, i * kPanel, in_panel, panel[i]);
  }

  BlockAhead ahead;
  for (int64_t key = w.key_begin; key < w.key_end; key += kBlockKeys) {
    const int n = static_cast<int>(clamp(w.key_end - key, 0, kBlockKeys));
    block.key = key;
    block.count = n;
    load_keys<Format>(a, w, block);
    look_ahead(a, w, panel, panels, key, ahead);
    for (int i = 0; i < panels; ++i) {
      Panel& p = panel[i];
      if (key == w.key_begin) load_queries<Format>(a, w, i * kPanel, rows, p);
      if (sees(p, key, n)) attend_panel<Format>(a, w, p, block, scores, ahead);
      // Written at once, so that its stores drain behind the next panel's products.
      const bool last = key + n >= w.key_end || p.any.last < key + n;
      if (last && !p.finished) finish_panel(a, w, i * kPanel, p);
    }
  }
  for (int i = 0; i < panels; ++i) {
    if (!panel[i].finished) finish_panel(a, w, i * kPanel, panel[i]);
  }
}

// Which format a call's products are taken in.
inline bool in_pairs(const Attention& a) {
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
  return a.q.dtype == DType::bf16 && BFloat16Pairs::holds(a.k.dtype);
#else
  (void)a;
  return false;
#endif
}

inline int64_t tile_scratch_floats(const Attention& a) {
  return TileMemory::of<Float32Words>(a).total();  // pairs need less
}

inline void attend_tiled(const Attention& a, const WorkItem& w, float* scratch) {
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
  if (in_pairs(a)) return attend_blocks<BFloat16Pairs>(a, w, scratch);
#endif
  attend_blocks<Float32Words>(a, w, scratch);
}

}  // namespace mainboard::cpu::MAINBOARD_ISA
