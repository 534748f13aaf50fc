// One instruction set's kernels. CMake compiles this file once per set, with that set's flags and
// its name in MAINBOARD_ISA.
#include <type_traits>

#include "csrc/cpu/amx.h"
#include "csrc/cpu/amx_rows.h"
#include "csrc/cpu/decode.h"
#include "csrc/cpu/tile.h"

namespace mainboard::cpu::MAINBOARD_ISA {

#if defined(__AMX_BF16__)
// Matrix tiles hold bfloat16 only; the next set serves what is not made of it, but for few rows
// against keys of one byte, which become bfloat16 at little cost.
constexpr int kManyRows = kTileBlockRows, kRowsPerRead = 64;
static bool few_rows_of_bytes(const Attention& a) {
  return few_rows_hold(a) && size_of(a.k.dtype) == 1 && a.heads <= kBlockRows * a.kv_heads;
}
static bool serves(const Attention& a) { return amx_serves(a) || few_rows_of_bytes(a); }
static int64_t many_rows_scratch_floats(const Attention& a) {
  const int64_t many = amx_serves(a) ? amx_scratch_floats(a) : tile_scratch_floats(a);
  const int64_t few = few_rows_scratch_floats(a);
  return many > few ? many : few;
}
static SharedChunks shared_chunks(const Attention& a) {
  return amx_serves(a) ? amx_shared_chunks(a) : SharedChunks();
}
static void attend_many_rows(const Attention& a, const WorkItem& w, float* scratch) {
  if (amx_serves(a)) return attend_amx(a, w, scratch);
  // Vectors take fewer rows at a time than tiles, for which the item was made.
  WorkItem piece = w;
  const int64_t most = kBlockRows / a.group;
  for (int64_t begin = w.query_begin; begin < w.query_end; begin += most) {
    piece.query_begin = begin;
    piece.query_end = clamp(begin + most, 0, w.query_end);
    const int64_t position = piece.query_end - 1 + w.sequence.keys - w.sequence.queries;
    piece.key_end = clamp(visible(a, w, position).last + 1, w.key_begin, w.key_end);
    attend_tiled(a, piece, scratch);
    if (piece.partial != nullptr) {
      piece.partial += (piece.query_end - begin) * a.group * (a.value_dim + 1);
    }
  }
}
#else
constexpr int kManyRows = kBlockRows, kRowsPerRead = 8;
static bool serves(const Attention&) { return true; }
static int64_t many_rows_scratch_floats(const Attention& a) { return tile_scratch_floats(a); }
static SharedChunks shared_chunks(const Attention&) { return {}; }
static void attend_many_rows(const Attention& a, const WorkItem& w, float* scratch) {
  attend_tiled(a, w, scratch);
}
#endif

static int64_t scratch_floats(const Attention& a) {
  const int64_t many = many_rows_scratch_floats(a), few = dot_scratch_floats(a);
  return many > few ? many : few;
}

static bool dot_is_best(const Attention& a, const WorkItem& w) {
#if defined(__AMX_BF16__)
  constexpr int64_t kFewest = 3;  // rows that fill enough of a tile
  if ((w.query_end - w.query_begin) * a.group >= kFewest && few_rows_serve(a, w)) return false;
#endif
  return dot_serves(a, w);
}

static void attend(const Attention& a, const WorkItem& w, float* scratch) {
  if (dot_is_best(a, w)) return attend_dotted(a, w, scratch);
#if defined(__AMX_BF16__)
  if (few_rows_serve(a, w)) return attend_few_rows(a, w, scratch);
#endif
  for (int64_t i = 0; i < w.kv_heads; ++i) attend_many_rows(a, one_head(a, w, i), scratch);
}

// The share of a row's result that each of its parts has: exp(lse[p]) / sum_p exp(lse[p]), where
// the sum has a further score's share too. Returns the log of that sum.
static float weigh_parts(const float* lse, int64_t stride, int64_t parts, float sink,
                         float* weight) {
  float top = sink;
  for (int64_t p = 0; p < parts; ++p) {
    weight[p] = lse[p * stride];
    top = weight[p] > top ? weight[p] : top;
  }
  for (int64_t p = parts; p % kLanes != 0; ++p) weight[p] = -INFINITY;
  // Nothing anywhere, or NaN: keep a finite reference so that the sum below says which.
  const float reference = top > -INFINITY ? top : 0.0f;
  Vec sums = zero();
  for (int64_t p = 0; p < parts; p += kLanes) {
    const Vec share = exp_nonpositive(load(weight + p) - set1(reference));
    store(weight + p, share);
    sums = sums + share;
  }
  const float sum = reduce_add(sums) + (sink > -INFINITY ? exp_scalar(sink - reference) : 0.0f);
  const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
  for (int64_t p = 0; p < parts; ++p) weight[p] *= inverse;
  return sum == 0.0f ? -INFINITY : reference + std::log(sum);
}

// to = factor * sum_p weight[p] part[p]. A part that weighs nothing is not read.
static void add_parts(const float* part, int64_t step, int64_t parts, const float* weight, int dim,
                      float factor, DType dtype, char* to) {
  constexpr int kChunk = 16 * kLanes;
  float line[kChunk];
  for (int begin = 0; begin < dim; begin += kChunk, to += kChunk * size_of(dtype)) {
    const int n = dim - begin < kChunk ? dim - begin : kChunk;
    for (int i = 0; i < n; i += kLanes) {
      const float* from = part + begin + i;
      const int count = n - i;
      Vec total = zero();
      for (int64_t p = 0; p < parts; ++p) {
        if (weight[p] == 0.0f) continue;
        const float* at = from + p * step;
        total = fma(set1(weight[p]), count < kLanes ? load_partial(at, count) : load(at), total);
      }
      store(line + i, total);
    }
    narrow_row(line, factor, dtype, to, n);
  }
}

static void join(const Attention& a, const Join& j) {
  const WorkItem& w = j.first;
  const int64_t rows = (w.query_end - w.query_begin) * a.group, dim = a.value_dim;
  const int64_t step = rows * (dim + 1);
  float weight[kMostParts];
  for (int64_t row = j.row_begin; row < j.row_end; ++row) {
    const float* first = w.partial + row * (dim + 1);
    const int64_t head = w.first_head + row % a.group;
    const int64_t index = w.sequence.query_begin + w.query_begin + row / a.group;
    const float sink = a.sinks == nullptr ? -INFINITY : a.sinks[head];
    const float lse = weigh_parts(first + dim, step, j.parts, sink, weight);
    add_parts(first, step, j.parts, weight, static_cast<int>(dim), value_scale(a, w.kv_head),
              a.out.dtype, a.out.at(index, 0, head));
    if (a.lse != nullptr) a.lse[head * a.lse_stride + index] = lse;
  }
}

#define MAINBOARD_TEXT_(x) #x
#define MAINBOARD_TEXT(x) MAINBOARD_TEXT_(x)

extern const CacheKernels cache_kernels;  // isa_cache.cpp
extern const Limits limits;               // isa_limits.cpp
extern const Kernels kernels;
const Kernels kernels = {
    MAINBOARD_TEXT(MAINBOARD_ISA),
    kManyRows,
    kRowsPerRead,
    serves,
    scratch_floats,
    shared_chunks,
    attend,
    join,
    &cache_kernels,
    &limits,
};

}  // namespace mainboard::cpu::MAINBOARD_ISA
