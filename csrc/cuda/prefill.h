// One call of the prefill kernel, as the host describes it to the device.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "csrc/common/dtype.h"

namespace mainboard::cuda {

// A sequence's query rows, of which `pack` heads of one key head lie together, are cut into tiles;
// a tile walks its keys in blocks. Dense keys are one page.
struct Prefill {
  CUtensorMap q;     // (column, head, token), in boxes of 64 columns and one tile's rows
  CUtensorMap k, v;  // (column, head, token of page, page), in boxes of 64 columns and `box_keys`
  void* out;
  float* lse;                             // may be null
  int64_t out_token, out_head, lse_head;  // strides in elements
  const int* table;                       // null: dense
  int64_t table_row;
  int page_keys, box_keys;
  const int *cu_queries, *cu_keys, *used_keys;
  int sequences, heads, group, pack;
  int value_dim;
  float scale;
  int left, right;
  float softcap;
  const float *alibi_slopes, *sinks;
  int* counters;  // two zeros, left as zeros: tiles taken, blocks of the grid that have ended
};

// A compiled kernel; its dimensions are the largest that it serves.
struct PrefillKernel {
  DType type;
  int head_dim, value_dim;
  bool transforms;  // serves softcap and ALiBi
  int rows, block_keys, threads, shared_bytes;
  const void* function;
};

// The kernel for these, or null.
const PrefillKernel* find_prefill(DType type, int64_t head_dim, int64_t value_dim, bool transforms);

}  // namespace mainboard::cuda
