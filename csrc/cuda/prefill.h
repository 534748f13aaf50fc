// One call of the prefill kernel, as the host describes it to the device.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "csrc/common/dtype.h"

namespace mainboard::cuda {

// What is done to scores. `other` is what nothing cheap is known for.
enum class Scores { scaled, capped, sloped, other };

// A sequence's query rows, of which `pack` heads of one key head lie together, are cut into tiles;
// a tile walks its keys in blocks. Dense keys are one page.
struct Prefill {
  CUtensorMap q;     // (column, head, token), in boxes of 64 columns and one tile's rows
  CUtensorMap k, v;  // (column, head, token of page, page), in boxes of 64 columns and `box_keys`;
                     // of all columns if fp8
  void* out;
  float* lse;                             // may be null
  int64_t out_token, out_head, lse_head;  // strides in elements
  const int* table;                       // null: dense
  int64_t table_row;
  int page_keys, box_keys;
  const int *cu_queries, *cu_keys, *used_keys;
  int sequences, heads, group, pack;
  int pack_multiplier;  // times a row of a tile, over 2^16, is the row over `pack`
  int value_dim;
  float scale;
  bool bf16;                           // the queries and the output, where keys are fp8
  bool cache_e5m2;                     // or e4m3
  const float *k_scale, *v_scale;      // of fp8 keys and values; may be null
  int k_scale_stride, v_scale_stride;  // from one key head to the next
  int left, right;
  const bool* causal_flags;  // sequences whose `right` is 0 instead; may be null
  Scores scores;
  float softcap;
  // What squares of scores may be at most for `capped`, and the factors of the polynomial of a
  // score that it takes for the capped one in base-2 units, of degrees 1, 3, 5 and 7.
  float cap_reach, cap[4];
  const float *alibi_slopes, *sinks;
  int skip_rows;  // sequences of no more rows than this are another kernel's
  int* counters;  // two zeros, left as zeros: tiles taken, blocks of the grid that have ended
};

// A compiled kernel; its dimensions are the largest that it serves.
struct PrefillKernel {
  DType type;  // of queries; f16 serves both over fp8 keys
  int head_dim, value_dim;
  bool transforms;  // serves softcap and ALiBi
  bool fp8;         // keys and values
  int rows, block_keys, grain, threads, shared_bytes;
  const void* function;
};

// The kernel for these, or null.
const PrefillKernel* find_prefill(DType query, DType cache, int64_t head_dim, int64_t value_dim,
                                  bool transforms);

}  // namespace mainboard::cuda
