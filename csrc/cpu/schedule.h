// Splits one attention call into work items of about equal cost.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "csrc/cpu/kernels.h"

namespace mainboard::cpu {

struct Batch {
  int64_t size = 0;
  int64_t query_tokens = 0, key_tokens = 0;  // rows of q and of dense k
  const int32_t* cu_queries = nullptr;       // [size + 1]
  const int32_t* cu_keys = nullptr;          // [size + 1], or null
  const int32_t* used_keys = nullptr;        // [size], or null
  const int32_t* table = nullptr;            // [size, table_width], or null
  int64_t table_stride = 0, table_width = 0, pages = 0, page_size = 1;
  int64_t right = kUnbounded;          // keys seen behind a query's position
  const bool* causal_flags = nullptr;  // [size], sequences that see none of those; or null
};

// The items [begin, end) of a plan: blocks of queries that read the same keys of one key head.
struct Readers {
  int64_t begin, end;
  int64_t dearest;  // one's cost
};

struct Plan {
  // Those bound by memory among those bound by arithmetic, in proportion, each kind dearest first.
  std::vector<WorkItem> items;
  std::vector<Join> joins;
  // What the items with partial results write to. Nothing is written before: the thread that works
  // on an item touches its memory first, so on a machine of several nodes it lies on that thread's.
  std::unique_ptr<float[]> partial;
  int64_t partial_room = 0;
  std::vector<uint8_t> chunk_states;  // of the chunks that items share, for Attention's
  std::vector<Sequence> sequences;    // while planning
  std::vector<Readers> readers;       // while planning
  std::vector<WorkItem> unordered;    // while planning
};

// Whether reading an item's keys takes longer than multiplying them.
bool is_bound_by_memory(const Attention&, const WorkItem&);

// What an item is thought to cost, in keys times rows.
int64_t work_cost(const Attention&, const WorkItem&);

// Reads one sequence, or throws std::invalid_argument naming the entry that cannot be right.
Sequence read_sequence(const Batch&, int64_t index);

// The most heads sharing a key head that fit into one work item, and that divide evenly.
int64_t heads_together(const Attention&, int64_t block_rows);

// How many key heads an item of so few queries may take: with few rows the work is reading, and
// the key heads of a page lie side by side in memory.
int64_t key_heads_together(const Attention&, int64_t queries);

// Fills `plan`, reusing its memory. With `deterministic`, how a sequence is split depends on that
// sequence alone; otherwise also on the rest of the batch and on `threads`.
void make_plan(const Attention&, const Batch&, int64_t block_rows, int64_t threads,
               bool deterministic, Plan* plan);

}  // namespace mainboard::cpu
