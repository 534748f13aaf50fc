// Plans the CPU's work for batches read from standard input and says how evenly threads end.
//
// One batch a line: threads, heads, kv_heads, rows of a block, rows whose arithmetic takes as long
// as reading, keys of a chunk that items may share, keys seen before a query, sequences, then each
// sequence's queries and keys. One answer a line: items, joins, the work of the busiest thread over
// the mean when each thread takes the next item as soon as it is free, the time over the least
// possible one where half of the threads saturate the memory, the queries of a key head some of
// whose keys no item covers or two cover, and items that reach too far, the allocations of planning
// the same batch again, the chunks that items share, how many of those are not one key head's
// alone, the items that share none, and the most key heads under way at once.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "csrc/cpu/schedule.h"

static long allocations = 0;
void* operator new(std::size_t size) {
  ++allocations;
  void* memory = std::malloc(size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

using namespace mainboard::cpu;

// How long the items take, over the least time that both the threads and the memory allow: a thread
// multiplies at speed 1 whatever others do, and `readers` threads together read at that many times
// speed 1 at most.
static double time_over_least(const Attention& a, const std::vector<WorkItem>& items,
                              int64_t threads, double readers) {
  struct Task {
    double left;
    bool reads;
  };
  std::vector<Task> running;
  double now = 0.0, work = 0.0, reading = 0.0;
  for (const WorkItem& w : items) {
    work += static_cast<double>(work_cost(a, w));
    if (is_bound_by_memory(a, w)) reading += static_cast<double>(work_cost(a, w));
  }
  size_t next = 0;
  while (next < items.size() || !running.empty()) {
    while (next < items.size() && running.size() < static_cast<size_t>(threads)) {
      const WorkItem& w = items[next++];
      running.push_back({static_cast<double>(work_cost(a, w)), is_bound_by_memory(a, w)});
    }
    const auto together =
        std::count_if(running.begin(), running.end(), [](const Task& task) { return task.reads; });
    const double speed = std::min(1.0, readers / std::max<double>(1.0, together));
    double step = 1e300;
    for (const Task& t : running) step = std::min(step, t.left / (t.reads ? speed : 1.0));
    for (Task& t : running) t.left -= step * (t.reads ? speed : 1.0);
    now += step;
    running.erase(std::remove_if(running.begin(), running.end(),
                                 [](const Task& task) { return task.left < 0.5; }),
                  running.end());
  }
  const double least = std::max(work / static_cast<double>(threads), reading / readers);
  return least == 0.0 ? 1.0 : now / least;
}

// What the items say of the chunks that they share.
struct Sharing {
  size_t chunks = 0, confused = 0, alone = 0;
};
static Sharing look_at_sharing(const Plan& plan) {
  using Owner = std::pair<int64_t, int64_t>;  // first query, key head
  std::vector<std::optional<Owner>> owners(plan.chunk_states.size());
  Sharing found{owners.size()};
  for (const WorkItem& w : plan.items) {
    const Owner owner{w.sequence.query_begin, w.kv_head};
    const int64_t count = w.shared_end - w.shared_begin;
    if (count == 0) ++found.alone;
    for (int64_t i = w.first_shared; i < w.first_shared + count; ++i) {
      if (!owners.at(i)) owners[i] = owner;
      if (owners[i] != owner) ++found.confused;
    }
  }
  return found;
}

// The most key heads of which some items have been taken and some have not.
static size_t most_heads_under_way(const Plan& plan) {
  std::map<std::pair<int64_t, int64_t>, size_t> left;
  for (const WorkItem& w : plan.items) ++left[{w.sequence.query_begin, w.kv_head}];
  std::map<std::pair<int64_t, int64_t>, size_t> under_way;
  size_t most = 0;
  for (const WorkItem& w : plan.items) {
    const std::pair head{w.sequence.query_begin, w.kv_head};
    under_way[head] = --left[head];
    most = std::max(most, under_way.size());
    if (left[head] == 0) under_way.erase(head);
  }
  return most;
}

// The queries of a key head whose keys are not covered once each, and the items that reach beyond
// what their queries see. What a query sees must be within the ranges of the items that have it,
// which lie one behind another.
static size_t count_uncovered(const Attention& a, const Batch& batch, const Plan& plan) {
  std::map<std::pair<int64_t, int64_t>, std::vector<std::pair<int64_t, int64_t>>> ranges;
  size_t wrong = 0;
  for (const WorkItem& w : plan.items) {
    const int64_t shift = w.sequence.keys - w.sequence.queries;
    const int64_t first = std::max<int64_t>(0, w.query_begin + shift - a.left) / 64 * 64;
    wrong += w.key_begin < first || w.key_end > w.query_end + shift ? 1 : 0;
    for (int64_t t = w.query_begin; t < w.query_end; ++t) {
      for (int64_t head = w.kv_head; head < w.kv_head + w.kv_heads; ++head) {
        ranges[{w.sequence.query_begin + t, head}].push_back({w.key_begin, w.key_end});
      }
    }
  }
  for (int64_t i = 0; i < batch.size; ++i) {
    const Sequence s = read_sequence(batch, i);
    for (int64_t t = 0; t < s.queries; ++t) {
      const int64_t position = t + s.keys - s.queries;
      const int64_t first = std::max<int64_t>(0, position - a.left);
      for (int64_t head = 0; head < a.kv_heads; ++head) {
        auto& mine = ranges[{s.query_begin + t, head}];
        std::sort(mine.begin(), mine.end());
        bool covered =
            !mine.empty() && mine.front().first <= first && mine.back().second > position;
        for (size_t r = 1; r < mine.size(); ++r) covered &= mine[r - 1].second == mine[r].first;
        wrong += covered ? 0 : 1;
      }
    }
  }
  return wrong;
}

int main() {
  int64_t threads, heads, kv_heads, block_rows, rows_per_read, chunk_keys, left, size;
  while (std::cin >> threads >> heads >> kv_heads >> block_rows >> rows_per_read >> chunk_keys >>
         left >> size) {
    std::vector<int32_t> cu_queries{0}, cu_keys{0};
    for (int64_t i = 0; i < size; ++i) {
      int32_t queries, keys;
      std::cin >> queries >> keys;
      cu_queries.push_back(cu_queries.back() + queries);
      cu_keys.push_back(cu_keys.back() + keys);
    }
    Attention a;
    a.heads = heads;
    a.kv_heads = kv_heads;
    a.head_dim = a.value_dim = 128;
    a.group = heads_together(a, block_rows);
    a.rows_per_read = rows_per_read;
    a.left = left;
    a.shared.keys = chunk_keys;
    a.shared.words = chunk_keys * a.head_dim;  // keys and values, two to a word
    Batch batch;
    batch.size = size;
    batch.right = 0;
    batch.query_tokens = cu_queries.back();
    batch.key_tokens = cu_keys.back();
    batch.cu_queries = cu_queries.data();
    batch.cu_keys = cu_keys.data();
    Plan plan;
    make_plan(a, batch, block_rows, threads, false, &plan);
    const long before = allocations;
    make_plan(a, batch, block_rows, threads, false, &plan);
    const long again = allocations - before;

    std::vector<double> busy(threads, 0.0);
    double total = 0.0;
    for (const WorkItem& w : plan.items) {
      const auto work = static_cast<double>(work_cost(a, w));
      *std::min_element(busy.begin(), busy.end()) += work;
      total += work;
    }
    const double mean = total / static_cast<double>(threads);
    const double worst = *std::max_element(busy.begin(), busy.end());
    const double readers = static_cast<double>(std::max<int64_t>(1, threads / 2));
    const Sharing sharing = look_at_sharing(plan);
    std::printf("%zu %zu %.6f %.6f %zu %ld %zu %zu %zu %zu\n", plan.items.size(), plan.joins.size(),
                total == 0.0 ? 1.0 : worst / mean, time_over_least(a, plan.items, threads, readers),
                count_uncovered(a, batch, plan), again, sharing.chunks, sharing.confused,
                sharing.alone, most_heads_under_way(plan));
  }
}
