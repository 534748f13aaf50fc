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
  int abreast;       // clusters that walk together
  int cluster;       // log2 of the blocks that share a tile
  int pairs;         // 1: two that walk together copy keys for each other
  int walkers;       // how often that many clusters are in the grid
  Divisor together;  // their blocks
  Divisor band_rows;
  int slot_rows;     // rows that a partial result has room for
  int fixed_pieces;  // 1: cut each sequence by its own length alone
  Workspace workspace;
};

inline constexpr int kLatentRows = 64;        // of a tile: queries x heads
inline constexpr int kMostLatentCluster = 3;  // log2 of its blocks
inline constexpr int kLatentPartKeys = 32;    // the most rows of a box

// Says how many clusters of `1 << cluster` blocks walk together, of a grid of `blocks` blocks.
// Returns how many blocks that is good for.
inline int walk_together(int abreast, int cluster, int blocks, LatentDecode* a) {
  a->abreast = abreast;
  a->cluster = cluster;
  a->walkers = blocks / (abreast << cluster);
  a->together = Divisor(static_cast<uint32_t>(abreast << cluster));
  a->band_rows = Divisor(static_cast<uint32_t>(abreast * kLatentRows));
  return a->walkers * (abreast << cluster);
}

// What blocks have to do with each other: nothing but joining tiles that are cut; copying each half
// of the keys that two tiles of a sequence read; or sharing each tile, for calls with few.
enum class LatentMode { alone, paired, sharing };

// A compiled kernel: for keys of 576 columns and values of 512.
struct LatentKernel {
  DType type;
  LatentMode mode;
  const void* function;
  int shared_bytes, threads;
};

// The kernel, or null.
const LatentKernel* find_latent(DType type, LatentMode mode);

}  // namespace mainboard::cuda
