// One call of the decode kernel, as the host describes it to the device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "csrc/common/dtype.h"
#include "csrc/cuda/divisor.h"

namespace mainboard::cuda {

#ifdef __CUDACC__
#define MAINBOARD_BOTH __host__ __device__
#else
#define MAINBOARD_BOTH
#endif

#ifndef MAINBOARD_LANES  // tests run the schedule on the host, one lane to a warp
#define MAINBOARD_LANES 32
#endif
inline constexpr int kLanes = MAINBOARD_LANES;
inline constexpr int kWarps = 4;        // of a block, at least
inline constexpr int kTileRows = 16;    // rows (query x head of the group) that one warp holds
inline constexpr int kDecodeRows = 64;  // of a sequence; with more, products of 64 rows pay
inline constexpr int kBlockKeys = 16;   // keys that are loaded together; never in two pages
inline constexpr int kMostPieces = 16;  // of a deterministic tile
inline constexpr int kLeastCluster = 3, kMostCluster = 4;  // log2 of the blocks of a cluster
inline constexpr int kMostClusterBlocks = 1 << kMostCluster;
inline constexpr int kManyPieces = 64;  // with more, a tile's pieces are joined in groups first

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
  const bool* causal_flags;  // sequences whose `right` is 0 instead; may be null
  float softcap;
  const float *alibi_slopes, *sinks, *k_scale, *v_scale;
  int k_scale_stride, v_scale_stride;
  int slot_rows;     // rows that a partial result has room for
  int fixed_pieces;  // 1: cut each sequence by its own length alone
  int tokens;        // of queries
  int pages;         // of the caches; dense: 0
  int most_keys;     // that a row of the table has pages for; dense: of all sequences
  int rows_above = 0, rows_up_to = INT32_MAX;  // sequences of others are another launch's
  int cluster;                                 // log2 of the blocks in a cluster of the launch
  int spread_units;  // that a block may have which has a multiprocessor to itself; 0: none has
  Workspace workspace;
};

// Whether clusters of `1 << cluster` blocks, of `blocks` in all, should have a tile each, where the
// longest of `tiles` tiles has `longest` units and an equal share of all is `equal`. What the
// busiest block has more than that must cost less than a join through memory, or in groups; a block
// with a multiprocessor to itself reads `spread_units` as fast as two blocks half as many each.
MAINBOARD_BOTH inline bool clusters_pay(int64_t tiles, int64_t equal, int longest, int blocks,
                                        int cluster, int spread_units, int rows) {
  constexpr int kGroupJoinUnits = 6;
  const int join_units = rows > 4 ? 3 : 2;
  const bool in_groups = tiles * kManyPieces < blocks && longest > kManyPieces;
  const int64_t busiest = (longest + (1 << cluster) - 1) >> cluster;
  return tiles << cluster <= blocks &&
         (busiest <= equal + (in_groups ? kGroupJoinUnits : join_units) || busiest <= spread_units);
}

// A compiled kernel: `row_tiles` of kTileRows rows are held by a block at once, which may be those
// of several key heads that lie side by side in the cache, each of which has `head_rows`. Each
// of `joiners` in a block joins the pieces of its own heads.
struct DecodeKernel {
  DType query, cache;
  int head_dim, row_tiles, heads, head_rows, joiners;
  const void* function;
  int shared_bytes;
  int unit_keys;
  int blocks_per_multiprocessor, threads;
  bool joins_in_cluster = false;  // it may be launched in clusters, and makes use of them
};

// The kernel for `rows` rows in each sequence, or null.
const DecodeKernel* find_decode(DType query, DType cache, int64_t head_dim, int64_t rows);
// The one whose blocks have a multiprocessor each, where there is one.
const DecodeKernel* find_decode_alone(DType query, DType cache, int64_t head_dim, int64_t rows);
// The one that walks `heads` key heads side by side, where there is one and the rows fit it.
const DecodeKernel* find_decode_of_heads(DType query, DType cache, int64_t head_dim, int64_t rows,
                                         int heads);

}  // namespace mainboard::cuda
