// Attention for many query rows on AMX tiles: bfloat16, and float16 as it is where the processor
// multiplies that (MAINBOARD_AMX_FP16), as pairs of bfloat16 where it does not.
//
// A work item's queries are packed once. Keys and values are packed a chunk at a time, small enough
// for the second-level cache, and every panel of 32 queries runs through the chunk's blocks while
// its output stays near. Items that read the same keys share a chunk once one of them has packed
// it: packing reads runs of one head's row, which takes longer than reading what is packed. All
// panels' blocks form one stream (amx_stream.h).
#pragma once

#include "csrc/cpu/amx_stream.h"
#include "csrc/cpu/tile.h"

#if defined(__AMX_BF16__)

namespace mainboard::cpu::MAINBOARD_ISA {

constexpr int kTileBlockRows = 1024;
constexpr int kTilePanels = kTileBlockRows / kTilePanel;
constexpr int kMostChunkBlocks = 16;
constexpr int64_t kChunkFloats = 128 * 1024;  // of packed keys and values, at most
// A longer output is not found in the second-level cache by whoever reads it, so it is written
// around the caches: what is only written need not be read first.
constexpr int64_t kStreamedOutput = 2 << 20;
constexpr float kLowest = -3.0e38f;  // reference of a query that has seen no key

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
  int64_t q, o;  // of one panel
  BlockWords block;

  explicit TileSizes(const Attention& a) {
    shape = {tile_steps(a.head_dim), 2 * tile_steps(a.value_dim)};
    parts = tile_parts(a);
    q = int64_t{parts} * shape.steps * 2 * kTileWords;
    o = int64_t{shape.columns} * kTile * kTilePanel;
    block.k = int64_t{parts} * shape.steps * kKeyTiles * kTileWords;
    block.v = int64_t{parts} * shape.columns * kTileWords;
    block.weights = int64_t{parts} * 2 * kTileWords;
    const int64_t fit = kChunkFloats / block.packed();
    chunk_blocks = static_cast<int>(clamp(fit, 1, kMostChunkBlocks));
  }
  int64_t total() const { return kTilePanels * (q + o) + chunk() + stream(); }
  int64_t chunk_keys() const { return int64_t{chunk_blocks} * kTileKeys; }
  int64_t chunk() const { return chunk_blocks * block.packed(); }
  int64_t stream() const { return 2 * (kMostRun * block.weights + kTileKeys * kTilePanel); }
};

inline int64_t amx_scratch_floats(const Attention& a) { return TileSizes(a).total(); }
inline SharedChunks amx_shared_chunks(const Attention& a) {
  const TileSizes sizes(a);
  SharedChunks chunks;
  chunks.keys = sizes.chunk_keys();
  chunks.words = sizes.chunk();
  return chunks;
}

// Everything of a panel but its queries and outputs; `query` gets its rows.
inline void begin_tile_panel(const Attention& a, const WorkItem& w, int64_t row, int64_t rows,
                             TilePanel& p, const char** query) {
  const int64_t shift = w.sequence.keys - w.sequence.queries;
  int64_t token = w.query_begin + row / a.group, head = row % a.group;
  p.begun = false;
  p.fresh = true;
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
  const int64_t bytes = w.sequence.queries * a.heads * dim * size_of(a.out.dtype);
  const bool streamed = w.partial == nullptr && bytes >= kStreamedOutput;
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
                  w.partial != nullptr ? DType::f32 : a.out.dtype, streamed, to, lanes);
    if (w.partial == nullptr && a.lse == nullptr) continue;
    float sums[kTile], references[kTile];
    store(sums, sum);
    store(references, reference);
    for (int lane = 0; lane < lanes; ++lane) {
      *lse[lane] = sums[lane] == 0.0f ? -INFINITY : references[lane] * kLn2 + std::log(sums[lane]);
    }
  }
}

// Packs keys [begin, end) and their values, block by block.
template <Operands kOperands>
inline void pack_chunk(const Attention& a, const WorkItem& w, const TileSizes& sizes, int64_t begin,
                       int64_t end, uint32_t* to) {
  const int dim = static_cast<int>(a.head_dim), value_dim = static_cast<int>(a.value_dim);
  const char* row[kTileKeys];
  for (int64_t key = begin; key < end; key += kTileKeys, to += sizes.block.packed()) {
    const int n = static_cast<int>(clamp(end - key, 0, kTileKeys));
    key_rows(a.k, w.sequence, a.page_size, key, w.kv_head, n, row);
    pack_keys<kParts<kOperands>>(row, n, dim, to);
    key_rows(a.v, w.sequence, a.page_size, key, w.kv_head, n, row);
    pack_values<kParts<kOperands>>(row, n, value_dim, to + sizes.block.k);
  }
}

// The scratch of a work item, and what is known of its panels.
struct TileItem {
  TileSizes sizes;
  int64_t rows;
  int panels;
  float* stream;
  uint32_t* chunk;  // keys and values
  TilePanel panel[kTilePanels];

  explicit TileItem(const Attention& a) : sizes(a) {}
};

template <Operands kOperands>
inline void begin_tile_item(const Attention& a, const WorkItem& w, float* scratch, TileItem& item) {
  const TileSizes& sizes = item.sizes;
  auto take = [&](int64_t floats) {
    float* block = scratch;
    scratch += floats;
    return block;
  };
  item.stream = take(sizes.stream());
  item.chunk = reinterpret_cast<uint32_t*>(take(sizes.chunk()));
  item.rows = (w.query_end - w.query_begin) * a.group;
  item.panels = static_cast<int>((item.rows + kTilePanel - 1) / kTilePanel);
  for (int i = 0; i < item.panels; ++i) {
    const char* query[kTilePanel];
    TilePanel& panel = item.panel[i];
    begin_tile_panel(a, w, i * kTilePanel, item.rows, panel, query);
    // All at once, because packing reads a line of each row in turn.
    for (const char* row : query) {
      for (int64_t b = 0; b < a.head_dim * 2; b += kTileBytes) __builtin_prefetch(row + b);
    }
    auto* q = reinterpret_cast<uint32_t*>(take(sizes.q));
    pack_queries<kParts<kOperands>>(query, static_cast<int>(a.head_dim), q);
    panel.q = q;
    panel.o = take(sizes.o);
  }
}

// The keys from `begin` on and their values, packed. Keys [begin, end) are of one chunk; what no
// other item reads, or one is packing right now, the item packs for itself.
template <Operands kOperands>
inline const uint32_t* packed_chunk(const Attention& a, const WorkItem& w, const TileItem& item,
                                    int64_t begin, int64_t end) {
  const TileSizes& sizes = item.sizes;
  const int64_t size = sizes.chunk_keys(), index = begin / size;
  if (index >= w.shared_begin && index < w.shared_end) {
    const int64_t chunk = w.first_shared + index - w.shared_begin;
    uint32_t* packed = a.shared.at(chunk);
    const uint32_t* wanted = packed + begin % size / kTileKeys * sizes.block.packed();
    if (a.shared.claim(chunk)) {
      pack_chunk<kOperands>(a, w, sizes, index * size,
                            clamp((index + 1) * size, 0, w.sequence.keys), packed);
      a.shared.publish(chunk);
      return wanted;
    }
    if (a.shared.is_packed(chunk)) return wanted;
  }
  pack_chunk<kOperands>(a, w, sizes, begin, end, item.chunk);
  return item.chunk;
}

// Attends the keys [begin, end) of a chunk, which are packed.
template <Operands kOperands, Score kScore>
inline void attend_chunk(const Attention& a, const ScorePlan& plan, TileItem& item, int64_t begin,
                         int64_t end, const uint32_t* packed) {
  const TileSizes& sizes = item.sizes;
  TileStream<kOperands, kScore> stream(a, plan, sizes.shape, sizes.block, item.stream);
  for (int i = 0; i < item.panels; ++i) {
    TilePanel& p = item.panel[i];
    if (p.any_last < begin || p.any_first >= end) continue;
    const int64_t first = p.any_first < begin ? 0 : (p.any_first - begin) / kTileKeys;
    const int64_t last = ((p.any_last < end ? p.any_last : end - 1) - begin) / kTileKeys;
    stream.push_row(&p, begin + first * kTileKeys, static_cast<int>(last - first) + 1,
                    packed + first * sizes.block.packed());
  }
  stream.drain();
}

template <Operands kOperands, Score kScore>
inline void attend_tiles(const Attention& a, const WorkItem& w, const ScorePlan& plan,
                         float* scratch) {
  TileItem item(a);
  begin_tile_item<kOperands>(a, w, scratch, item);
  const TileSession session;
  const int64_t chunk = item.sizes.chunk_keys();
  for (int64_t begin = w.key_begin, end; begin < w.key_end; begin = end) {
    end = clamp((begin / chunk + 1) * chunk, 0, w.key_end);
    const uint32_t* packed = packed_chunk<kOperands>(a, w, item, begin, end);
    attend_chunk<kOperands, kScore>(a, plan, item, begin, end, packed);
  }
  for (int i = 0; i < item.panels; ++i) {
    const int64_t row = i * kTilePanel, left = item.rows - row;
    if (item.panel[i].fresh) std::memset(item.panel[i].o, 0, sizeof(float) * item.sizes.o);
    finish_tile_panel(a, w, row, static_cast<int>(left < kTilePanel ? left : kTilePanel),
                      item.panel[i]);
  }
  _mm_sfence();  // what was written around the caches comes before what is written next
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
