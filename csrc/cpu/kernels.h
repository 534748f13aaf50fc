// What crosses from the host code, compiled once, to the kernels, compiled per instruction set.
#pragma once

#include <cstdint>

#include "csrc/common/dtype.h"
#include "csrc/cpu/cache_kernels.h"
#include "csrc/cpu/chunks.h"
#include "csrc/cpu/limits.h"

namespace mainboard::cpu {

// Rows of one head dimension, addressed by two indices. Strides are in elements.
struct Rows {
  char* data = nullptr;
  DType dtype = DType::f32;
  int64_t outer = 0;  // token, or page
  int64_t inner = 0;  // slot within a page
  int64_t head = 0;

  char* at(int64_t o, int64_t i, int64_t h) const {
    return data + (o * outer + i * inner + h * head) * size_of(dtype);
  }
};

// Positions are key positions: query t of a sequence stands at t + keys - queries.
struct Sequence {
  int64_t query_begin;  // first token in q
  int64_t queries;
  int64_t key_begin;  // first token in dense k and v
  int64_t keys;
  const int32_t* pages;  // null for dense k and v
  int64_t right;         // keys seen behind a query's position
};

constexpr int64_t kUnbounded = int64_t{1} << 40;

// Items of at most so many rows per key head may take several key heads,
constexpr int64_t kRowsReadTogether = 20;
// and have at most so many rows in all.
constexpr int64_t kMostRowsReadTogether = 160;

struct Attention {
  Rows q, k, v, out;
  float* lse = nullptr;  // [heads, tokens], or null
  int64_t lse_stride = 0;
  int64_t page_size = 1;
  int64_t heads = 0, kv_heads = 0;
  int64_t group = 0;  // query heads that one work item takes together; they share a key head
  int64_t head_dim = 0, value_dim = 0;
  int64_t rows_per_read = 8;  // how many rows' arithmetic on a key takes as long as reading it
  float scale = 1.0f, softcap = 0.0f;
  int64_t left = kUnbounded;            // keys seen before a query's position
  const float* alibi_slopes = nullptr;  // [heads]
  const float* sinks = nullptr;         // [heads]
  const float* k_scale = nullptr;       // [1] or [kv_heads]
  const float* v_scale = nullptr;
  int64_t k_scale_stride = 0, v_scale_stride = 0;
  SharedChunks shared;
};

// One block of queries, of the heads that share some key heads, against one range of keys.
struct WorkItem {
  Sequence sequence;
  int64_t kv_head, first_head;
  int64_t kv_heads;                // more than one only with few queries: they are read as one run
  int64_t query_begin, query_end;  // within the sequence
  int64_t key_begin, key_end;
  float* partial;        // null, or rows x (value_dim + 1): output and log-sum-exp of this range
  int64_t partial_step;  // floats from one key head's to the next's
  int64_t shared_begin, shared_end;  // chunks of the sequence's keys that it shares with others,
  int64_t first_shared;              // and which of Attention's the first of them is
  int64_t turn;                      // when it comes, of the items bound by arithmetic
  int64_t most_keys;  // that it may have, or 0 where its cost decides; while planning
};

// The part of an item that one of its key heads has.
inline WorkItem one_head(const Attention& a, const WorkItem& w, int64_t i) {
  WorkItem one = w;
  one.kv_head += i;
  one.first_head += i * a.group;
  one.kv_heads = 1;
  if (w.partial != nullptr) one.partial += i * w.partial_step;
  return one;
}

// The partial results of some rows of a block of queries, to be joined.
constexpr int64_t kMostParts = 256;
struct Join {
  WorkItem first;  // parts lie one behind another from first.partial
  int64_t parts;   // at most kMostParts
  int64_t row_begin, row_end;
};

struct Kernels {
  const char* name;
  int64_t block_rows;     // most queries times group that one work item may hold
  int64_t rows_per_read;  // Attention's
  bool (*serves)(const Attention&);
  int64_t (*scratch_floats)(const Attention&);
  SharedChunks (*shared_chunks)(const Attention&);  // their sizes
  void (*attend)(const Attention&, const WorkItem&, float* scratch);
  void (*join)(const Attention&, const Join&);
  const CacheKernels* cache;
  const Limits* limits;
};

// The kernels chosen for this processor, or by name; null when `name` is not usable here.
const Kernels* find_kernels(const char* name);
const Kernels& active_kernels();
// The active kernels, or the next best where those do not serve this call.
const Kernels& kernels_for(const Attention&);

}  // namespace mainboard::cpu
