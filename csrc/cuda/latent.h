// One call of the latent decode kernel, as the host describes it to the device.
#pragma once

#include <cuda.h>

#include "csrc/cuda/decode.h"

namespace mainboard::cuda {

struct LatentDecode {
  CUtensorMap queries;  // of [tokens x heads, 576]; a box is 64 columns of 64 rows
  CUtensorMap cache;    // of [pages, rows of a page, 576]; a box is 64 columns of some rows
  int log_box;          // log2 of those: 16 or 32, never in two pages
  const void* q;
  void* out;
  float* lse;                                              // may be null
  int64_t q_token, q_head, out_token, out_head, lse_head;  // strides in elements
  const int* table;
  int64_t table_row;
  Divisor page_blocks;  // blocks of 16 rows in a page
  const int *cu_queries, *used_keys;
  int sequences;
  Divisor heads;
  float scale_log2;  // softmax_scale * log2(e)
  int right;         // keys that a query sees after its own
  const float* kv_scale;
  int abreast;       // blocks that walk together; the grid is a multiple of it
  int slot_rows;     // rows that a partial result has room for
  int fixed_pieces;  // 1: cut each sequence by its own length alone
  Workspace workspace;
};

inline constexpr int kLatentRows = 64;      // of a tile: queries x heads
inline constexpr int kLatentPartKeys = 32;  // the most rows of a box

// A compiled kernel: for keys of 576 columns and values of 512.
struct LatentKernel {
  DType type;
  const void* function;
  int shared_bytes, threads;
};

// The kernel for this type, or null.
const LatentKernel* find_latent(DType type);

}  // namespace mainboard::cuda
