// One call of the decode kernel, as the host describes it to the device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "csrc/common/dtype.h"

namespace mainboard::cuda {

#ifndef MAINBOARD_LANES  // tests run the schedule on the host, one lane to a warp
#define MAINBOARD_LANES 32
#endif
inline constexpr int kLanes = MAINBOARD_LANES;
inline constexpr int kWarps = 4;        // of a block
inline constexpr int kTileRows = 16;    // rows (query x head of the group) that one warp holds
inline constexpr int kDecodeRows = 64;  // of a sequence; with more, products of 64 rows pay
inline constexpr int kBlockKeys = 16;   // keys that are loaded together; never in two pages
inline constexpr int kMostPieces = 16;  // of a deterministic tile

// Division by a number that is known before the launch: for n below 2^31.
struct Divisor {
  uint32_t value = 1, multiplier = 0, shift = 0;

  Divisor() = default;
  explicit Divisor(uint32_t d) : value(d) {
    while ((uint64_t{1} << shift) < d) ++shift;
    multiplier =
        static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift) - d)) / d + 1);
  }
#ifdef __CUDACC__
  __device__ int divide(int n) const {
    const uint32_t u = static_cast<uint32_t>(n);
    return static_cast<int>((__umulhi(u, multiplier) + u) >> shift);
  }
#endif
};

// Where the rows of a cache are; strides in bytes. Dense keys are pages of one block.
struct CacheRows {
  const char* data;
  int64_t page, head;
  int token;
};

// What the blocks of one call share: partial results in slots of `Decode::slot_rows` rows. A row is
// its sums in one array and its maximum and total in another, twice as long: the second half is
// for pieces that were joined. Counters are zero before and after a call.
struct Workspace {
  float* sums;
  float2* statistics;
  int* counters;
  int64_t rows;  // in all slots
};

struct Decode {
  const void* q;
  void* out;
  float* lse;                                              // may be null
  int64_t q_token, q_head, out_token, out_head, lse_head;  // strides in elements
  CacheRows k, v;
  const int* table;  // null: dense
  int64_t table_row;
  Divisor page_blocks;
  const int *cu_queries, *cu_keys, *used_keys;
  int sequences, heads, kv_heads;
  Divisor group;
  float scale_log2;  // softmax_scale * log2(e)
  int left, right;
  float softcap;
  const float *alibi_slopes, *sinks, *k_scale, *v_scale;
  int k_scale_stride, v_scale_stride;
  int slot_rows;     // rows that a partial result has room for
  int fixed_pieces;  // 1: cut each sequence by its own length alone
  int rows_above = 0, rows_up_to = INT32_MAX;  // sequences of others are another launch's
  Workspace workspace;
};

// A compiled kernel: `row_tiles` of kTileRows rows are held by a block at once.
struct DecodeKernel {
  DType query, cache;
  int head_dim, row_tiles;
  const void* function;
  int shared_bytes;
  int blocks_per_multiprocessor, threads;
};

// The kernel for `rows` rows in each sequence, or null.
const DecodeKernel* find_decode(DType query, DType cache, int64_t head_dim, int64_t rows);

// The kernel for latent attention (keys of 576 columns, values of 512), or null.
const DecodeKernel* find_latent(DType type);

}  // namespace mainboard::cuda
