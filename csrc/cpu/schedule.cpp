#include "csrc/cpu/schedule.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

namespace mainboard::cpu {
namespace {

constexpr int64_t kKeyGrain = 64;       // ranges of keys begin at multiples of this
constexpr int64_t kFewestKeys = 256;    // a smaller range is not worth joining
constexpr int64_t kFixedKeys = 2048;    // range of the deterministic mode
constexpr int64_t kItemsPerThread = 3;  // enough for the last thread to end with the others
constexpr int64_t kShortKeys = 512;     // where splitting the heads is cheaper than joining keys
constexpr int64_t kShortWork = 16384;   // keys that a thread reads before a second item is worth it
constexpr int64_t kFewestReaders = 3;   // of a key that is packed once for all
constexpr int64_t kMostShared = 16 << 20;  // words of packed keys and values: 64 MiB
constexpr int64_t kItemsPerTurn = 4;       // and thread
constexpr int64_t kFewestRows = 96;        // of a block that is one of several
constexpr int64_t kRowsPerJoin = 128;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

[[noreturn]] void refuse(const std::string& entry, int64_t value, const std::string& expected) {
  throw std::invalid_argument(entry + " is " + std::to_string(value) + "; expected " + expected);
}

std::string at(const char* name, int64_t i) {
  return std::string(name) + "[" + std::to_string(i) + "]";
}

int64_t keys_of(const WorkItem& w) { return w.key_end - w.key_begin; }

int64_t cost_per_key(const Attention& a, const WorkItem& w) {
  return w.kv_heads * std::max(a.rows_per_read, (w.query_end - w.query_begin) * a.group);
}

// The keys that some query of the block can see.
void narrow_keys(const Attention& a, WorkItem* w) {
  const int64_t shift = w->sequence.keys - w->sequence.queries;
  const int64_t first = std::max<int64_t>(0, w->query_begin + shift - a.left);
  const int64_t last = std::min(w->sequence.keys - 1, w->query_end - 1 + shift + w->sequence.right);
  w->key_begin = first / kKeyGrain * kKeyGrain;
  w->key_end = std::max(w->key_begin, last + 1);
}

// How the queries of a sequence become blocks and, where that is not enough, their keys ranges.
struct Cut {
  int64_t tokens;      // of a block
  int64_t ranges = 0;  // of keys; 0 where an item's cost decides
  int64_t keys = 0;    // of a range, at most
  double item = 0.0;   // cost of the dearest, in keys times rows
  double extra = 0.0;  // cost of cutting so, beyond the work itself
};

WorkItem block_of(const Attention& a, const Sequence& s, int64_t begin, int64_t tokens) {
  WorkItem w{};
  w.sequence = s;
  w.query_begin = begin;
  w.query_end = std::min(s.queries, begin + tokens);
  narrow_keys(a, &w);
  return w;
}

// Roughly what a sequence costs, in keys times rows.
double sequence_cost(const Attention& a, const Sequence& s) {
  if (s.queries == 0) return 0.0;
  const int64_t first = keys_of(block_of(a, s, 0, 1));
  const int64_t last = keys_of(block_of(a, s, s.queries - 1, 1));
  return static_cast<double>(a.heads * s.queries) * static_cast<double>(first + last) / 2.0;
}

// Smaller blocks pack their keys more often, which takes half as long again as reading them. Ranges
// of keys leave rows to be joined, each of which takes as long as reading six keys. And all threads
// together wait for as long as `waiting` of the dearest items take.
Cut weigh_cut(const Attention& a, const Sequence& s, int64_t tokens, int64_t ranges,
              double waiting) {
  const double packing = 1.5 * static_cast<double>(a.rows_per_read);
  const double joining = 6.0 * static_cast<double>(a.rows_per_read);
  const int64_t heads = a.heads / a.group, blocks = divide_up(s.queries, tokens);
  const auto keys_of_block = [&](int64_t i) {
    return keys_of(block_of(a, s, std::max<int64_t>(0, i) * tokens, tokens));
  };
  // The last block sees most, unless it is short and the window too.
  const int64_t most = std::max(keys_of_block(blocks - 1), keys_of_block(blocks - 2));
  const int64_t mean = (keys_of_block(0) + most) / 2;
  Cut cut{tokens, ranges, divide_up(divide_up(most, ranges), kKeyGrain) * kKeyGrain};
  const auto keys = static_cast<double>(cut.keys);
  const auto rows = static_cast<double>(std::min(s.queries, tokens) * a.group);
  const int64_t joined = ranges == 1 ? 0 : divide_up(mean, cut.keys) * s.queries * a.group;
  cut.item = rows * keys;
  cut.extra = packing * static_cast<double>(heads * blocks * mean) +
              joining * static_cast<double>(heads * joined) + waiting * (rows + packing) * keys;
  return cut;
}

// The cut that costs least. Each thread waits for half of the dearest item, which this sequence
// answers for as far as it is part of the `total`. Where an item is a small part of a thread's
// work, smaller ones win nothing.
Cut cheapest_cut(const Attention& a, const Sequence& s, int64_t block_rows, int64_t threads,
                 double total) {
  const double waiting = 0.5 * static_cast<double>(threads) * sequence_cost(a, s) / total;
  const double enough = total / static_cast<double>(threads * kItemsPerThread);
  const int64_t most = block_rows / a.group;
  Cut best{most};
  best.extra = std::numeric_limits<double>::infinity();
  for (int64_t tokens = most; tokens == most || tokens * a.group >= kFewestRows; tokens /= 2) {
    for (int64_t ranges = 1;; ranges *= 2) {
      const Cut cut = weigh_cut(a, s, tokens, ranges, waiting);
      if (cut.extra < best.extra) best = cut;
      if (ranges == 1 && cut.item <= enough) return best;
      if (cut.item <= enough || 2 * ranges == kMostParts || cut.keys < 2 * kFewestKeys) break;
    }
  }
  return best;
}

void add_blocks(const Attention& a, const Sequence& s, const Cut& cut, Plan* plan) {
  const int64_t blocks = divide_up(s.queries, cut.tokens);
  const int64_t together = key_heads_together(a, s.queries);
  const bool reads = s.queries * a.group <= a.rows_per_read;
  for (int64_t head = 0; head < a.heads; head += together * a.group) {
    Readers readers{static_cast<int64_t>(plan->items.size()), 0, 0};
    for (int64_t block = 0; block < blocks; ++block) {
      WorkItem w = block_of(a, s, block * cut.tokens, cut.tokens);
      w.kv_head = head * a.kv_heads / a.heads;
      w.first_head = head;
      w.kv_heads = std::min(together, a.kv_heads - w.kv_head);
      w.most_keys = cut.ranges == 1 ? kUnbounded : cut.keys;
      plan->items.push_back(w);
      readers.dearest = std::max(readers.dearest, work_cost(a, w));
    }
    readers.end = static_cast<int64_t>(plan->items.size());
    if (!reads) plan->readers.push_back(readers);
  }
}

// Cuts all sequences into blocks. Those of few queries are cut later, by key heads first.
void add_sequences(const Attention& a, int64_t block_rows, int64_t threads, bool deterministic,
                   Plan* plan) {
  const auto is_cut = [&](const Sequence& s) {
    return !deterministic && s.queries * a.group > std::max(a.rows_per_read, kRowsReadTogether);
  };
  double total = 1.0;  // above zero, whatever there is
  for (const Sequence& s : plan->sequences) total += is_cut(s) ? sequence_cost(a, s) : 0.0;
  for (const Sequence& s : plan->sequences) {
    const Cut whole{block_rows / a.group};
    add_blocks(a, s, is_cut(s) ? cheapest_cut(a, s, block_rows, threads, total) : whole, plan);
  }
}

// Splits an item's key heads so that each piece costs about `budget` when it is left with so many
// keys. Which heads go together does not change a bit of any result.
void split_heads(const Attention& a, int64_t budget, int64_t fewest_keys, size_t index,
                 std::vector<WorkItem>* items) {
  const WorkItem w = (*items)[index];
  const int64_t keys = keys_of(w);
  const int64_t left = keys <= kShortKeys ? keys : std::min(keys, fewest_keys);
  const int64_t pieces = std::min(w.kv_heads, divide_up(cost_per_key(a, w) * left, budget));
  if (pieces <= 1) return;
  for (int64_t p = 0; p < pieces; ++p) {
    const int64_t begin = w.kv_heads * p / pieces, end = w.kv_heads * (p + 1) / pieces;
    WorkItem piece = w;
    piece.kv_head += begin;
    piece.first_head += begin * a.group;
    piece.kv_heads = end - begin;
    if (p == 0) {
      (*items)[index] = piece;
    } else {
      items->push_back(piece);
    }
  }
}

// Chunks of a sequence's keys.
struct ChunkRange {
  int64_t begin, end;
  int64_t count() const { return end - begin; }
};

// Those that some items share: all that they read, or none. What is packed for others has to be
// written to memory, and packing it once must save more than that.
ChunkRange chunks_to_share(const SharedChunks& sizes, const WorkItem* begin, const WorkItem* end) {
  int64_t first = kUnbounded, last = 0, read = 0;
  for (const WorkItem* w = begin; w != end; ++w) {
    first = std::min(first, w->key_begin);
    last = std::max(last, w->key_end);
    read += keys_of(*w);
  }
  if (read < kFewestReaders * (last - first)) return {0, 0};
  return {first / sizes.keys, divide_up(last, sizes.keys)};
}

// Lets items that read the same keys share what is packed of them. Where that is more than may be
// kept, each key head has its part, of the first keys, which most items see.
void share_chunks(const SharedChunks& sizes, Plan* plan) {
  plan->chunk_states.clear();
  if (sizes.keys == 0) return;
  const auto wish = [&](const Readers& r) {
    return chunks_to_share(sizes, plan->items.data() + r.begin, plan->items.data() + r.end);
  };
  int64_t wished = 0, given = 0;
  for (const Readers& r : plan->readers) wished += wish(r).count();
  if (wished == 0) return;
  const int64_t most = std::min(wished, kMostShared / sizes.words);
  for (const Readers& r : plan->readers) {
    const ChunkRange wanted = wish(r);
    const int64_t share = wanted.count() * most / wished;
    for (int64_t i = r.begin; i < r.end; ++i) {
      plan->items[i].shared_begin = wanted.begin;
      plan->items[i].shared_end = wanted.begin + share;
      plan->items[i].first_shared = given;
    }
    given += share;
  }
  plan->chunk_states.assign(given, SharedChunks::kUnpacked);
}

// Lets items that read the same keys come in the same turn, so that those keys are still near for
// the next of them. A turn has a key head for each thread to begin with, and items enough for
// threads to end together.
void take_turns(int64_t threads, Plan* plan) {
  std::vector<Readers>& readers = plan->readers;
  std::sort(readers.begin(), readers.end(), [](const Readers& x, const Readers& y) {
    return x.dearest != y.dearest ? x.dearest > y.dearest : x.begin < y.begin;
  });
  const auto fills_turn = [&](int64_t heads, int64_t items) {
    return heads >= threads && items >= threads * kItemsPerTurn;
  };
  int64_t heads_left = static_cast<int64_t>(readers.size()), items_left = 0;
  for (const Readers& r : readers) items_left += r.end - r.begin;
  int64_t turn = 0, heads = 0, items = 0;
  for (const Readers& r : readers) {
    if (fills_turn(heads, items) && fills_turn(heads_left, items_left)) {
      ++turn;
      heads = items = 0;
    }
    for (int64_t i = r.begin; i < r.end; ++i) plan->items[i].turn = turn;
    ++heads, --heads_left;
    items += r.end - r.begin, items_left -= r.end - r.begin;
  }
}

int64_t part_floats(const Attention& a, const WorkItem& w) {
  return (w.query_end - w.query_begin) * a.group * (a.value_dim + 1);
}

// Keys per part so that no item costs more than `budget`; the whole range when it is cheap enough.
int64_t keys_per_part(const Attention& a, const WorkItem& w, int64_t budget, bool deterministic) {
  const int64_t keys = keys_of(w);
  if (w.most_keys != 0) return w.most_keys;
  int64_t part = kFixedKeys;
  if (!deterministic) {
    if (work_cost(a, w) <= budget) return keys;
    part = std::max(kFewestKeys, budget / cost_per_key(a, w));
  }
  part = std::max(part, divide_up(keys, kMostParts));
  return divide_up(part, kKeyGrain) * kKeyGrain;
}

// Whether each thread is to have one item, an equal part of one short sequence's key heads. The
// first keys of an item are waited for and ranges of keys are joined, which costs more than one
// thread's waiting for another until the sequence is long.
bool shares_heads(int64_t threads, const std::vector<WorkItem>& items) {
  if (items.size() != 1 || items[0].kv_heads % threads != 0) return false;
  return items[0].kv_heads / threads * keys_of(items[0]) <= kShortWork;
}

// What an item may cost: a fraction of a thread's share, so that the last thread ends with the
// others.
int64_t item_budget(const Attention& a, int64_t wanted, const std::vector<WorkItem>& items) {
  int64_t total = 0;
  for (const WorkItem& w : items) total += work_cost(a, w);
  return total / wanted + 1;
}

void split_keys(const Attention& a, int64_t threads, bool deterministic, Plan* plan) {
  const bool even = shares_heads(threads, plan->items);
  const int64_t budget = item_budget(a, even ? threads : threads * kItemsPerThread, plan->items);
  const int64_t fewest_keys = even ? kUnbounded : deterministic ? kFixedKeys : kFewestKeys;
  for (size_t i = 0, given = plan->items.size(); i < given; ++i) {
    if (plan->items[i].kv_heads > 1) split_heads(a, budget, fewest_keys, i, &plan->items);
  }
  const size_t whole = plan->items.size();
  int64_t floats = 0;
  for (size_t i = 0; i < whole; ++i) {
    const WorkItem w = plan->items[i];
    const int64_t part = keys_per_part(a, w, budget, deterministic);
    const int64_t parts = part == 0 ? 1 : divide_up(keys_of(w), part);
    if (parts <= 1) continue;
    // Of one key head the parts lie one behind another.
    const int64_t step = parts * part_floats(a, w);
    // An offset for now: the memory may still move.
    auto offset = [&](int64_t at) { return reinterpret_cast<float*>((at + 1) * sizeof(float)); };
    const int64_t rows = (w.query_end - w.query_begin) * a.group;
    for (int64_t h = 0; h < w.kv_heads; ++h) {
      WorkItem first = one_head(a, w, h);
      first.partial = offset(floats + h * step);
      for (int64_t row = 0; row < rows; row += kRowsPerJoin) {
        plan->joins.push_back({first, parts, row, std::min(rows, row + kRowsPerJoin)});
      }
    }
    for (int64_t p = 0; p < parts; ++p) {
      WorkItem piece = w;
      piece.key_begin = w.key_begin + p * part;
      piece.key_end = std::min(w.key_end, piece.key_begin + part);
      piece.partial = offset(floats + p * part_floats(a, w));
      piece.partial_step = step;
      if (p == 0) {
        plan->items[i] = piece;
      } else {
        plan->items.push_back(piece);
      }
    }
    floats += w.kv_heads * step;
  }
  if (plan->partial_room < floats) {
    plan->partial.reset(new float[floats]);
    plan->partial_room = floats;
  }
  auto place = [&](WorkItem& w) {
    if (w.partial == nullptr) return;
    w.partial = plan->partial.get() + reinterpret_cast<uintptr_t>(w.partial) / sizeof(float) - 1;
  };
  for (WorkItem& w : plan->items) place(w);
  for (Join& j : plan->joins) place(j.first);
}

// Orders the items for threads that each take the next one. Those bound by memory come among those
// bound by arithmetic, from beginning to end: at any moment as many threads read as must for the
// reading to be done in time, so that they are in each other's way as little as can be. Of each
// kind the dearest come first, so that what the last thread does is short.
void order_items(const Attention& a, Plan* plan) {
  std::vector<WorkItem>& items = plan->items;
  const auto dearer = [&](const WorkItem& x, const WorkItem& y) {
    const bool reads = is_bound_by_memory(a, x);
    if (reads != is_bound_by_memory(a, y)) return !reads;
    if (!reads && x.turn != y.turn) return x.turn < y.turn;
    return work_cost(a, x) > work_cost(a, y);
  };
  std::sort(items.begin(), items.end(), dearer);
  const auto reading = std::partition_point(
      items.begin(), items.end(), [&](const WorkItem& w) { return !is_bound_by_memory(a, w); });
  if (reading == items.begin() || reading == items.end()) return;
  plan->unordered.assign(items.begin(), items.end());
  const WorkItem* const middle = plan->unordered.data() + (reading - items.begin());
  const WorkItem* const end = plan->unordered.data() + items.size();
  const auto sum = [&](const WorkItem* from, const WorkItem* to) {
    double total = 0.0;
    for (; from != to; ++from) total += static_cast<double>(work_cost(a, *from));
    return total;
  };
  const double all[] = {sum(plan->unordered.data(), middle), sum(middle, end)};
  const WorkItem* next[] = {plan->unordered.data(), middle};
  const WorkItem* const last[] = {middle, end};
  double taken[] = {0.0, 0.0};
  for (WorkItem& item : items) {
    const bool first_is_behind = taken[0] * all[1] <= taken[1] * all[0];
    const int kind = next[1] == last[1] || (next[0] != last[0] && first_is_behind) ? 0 : 1;
    taken[kind] += static_cast<double>(work_cost(a, *next[kind]));
    item = *next[kind]++;
  }
}

}  // namespace

bool is_bound_by_memory(const Attention& a, const WorkItem& w) {
  return (w.query_end - w.query_begin) * a.group <= a.rows_per_read;
}

int64_t work_cost(const Attention& a, const WorkItem& w) {
  return cost_per_key(a, w) * keys_of(w) + 1;
}

Sequence read_sequence(const Batch& b, int64_t i) {
  Sequence s{};
  s.right = b.causal_flags != nullptr && b.causal_flags[i] ? 0 : b.right;
  s.query_begin = b.cu_queries[i];
  s.queries = b.cu_queries[i + 1] - s.query_begin;
  if (s.queries < 0 || s.query_begin < 0 || s.query_begin + s.queries > b.query_tokens) {
    refuse(at("cu_seqlens_q", i + 1), b.cu_queries[i + 1],
           "ascending offsets from 0 to " + std::to_string(b.query_tokens));
  }
  int64_t room = b.table == nullptr ? b.key_tokens : b.table_width * b.page_size;
  if (b.cu_keys != nullptr) {
    s.key_begin = b.cu_keys[i];
    s.keys = b.cu_keys[i + 1] - s.key_begin;
    if (b.table == nullptr) room -= s.key_begin;
    if (s.keys < 0 || s.key_begin < 0 || s.keys > room) {
      refuse(at("cu_seqlens_k", i + 1), b.cu_keys[i + 1], "ascending offsets within the keys");
    }
  }
  if (b.used_keys != nullptr) {
    s.keys = b.used_keys[i];
    if (s.keys < 0 || s.keys > room) {
      refuse(at("seqused_k", i), s.keys, "0 to " + std::to_string(room));
    }
  }
  if (b.table == nullptr) return s;
  s.pages = b.table + i * b.table_stride;
  for (int64_t page = 0; page * b.page_size < s.keys; ++page) {
    if (s.pages[page] < 0 || s.pages[page] >= b.pages) {
      refuse(at("block_table", i) + "[" + std::to_string(page) + "]", s.pages[page],
             "0 to " + std::to_string(b.pages - 1));
    }
  }
  return s;
}

int64_t key_heads_together(const Attention& a, int64_t queries) {
  const int64_t rows = queries * a.group;
  const bool sharing_whole = a.group * a.kv_heads == a.heads;
  if (!sharing_whole || rows > kRowsReadTogether) return 1;
  return std::max<int64_t>(1, kMostRowsReadTogether / std::max<int64_t>(1, rows));
}

int64_t heads_together(const Attention& a, int64_t block_rows) {
  const int64_t sharing = a.heads / a.kv_heads;
  for (int64_t parts = divide_up(sharing, block_rows);; ++parts) {
    if (sharing % parts == 0) return sharing / parts;
  }
}

void make_plan(const Attention& a, const Batch& batch, int64_t block_rows, int64_t threads,
               bool deterministic, Plan* plan) {
  plan->items.clear();
  plan->joins.clear();
  plan->readers.clear();
  plan->sequences.clear();
  for (int64_t i = 0; i < batch.size; ++i) plan->sequences.push_back(read_sequence(batch, i));
  add_sequences(a, block_rows, threads, deterministic, plan);
  share_chunks(a.shared, plan);
  take_turns(threads, plan);
  split_keys(a, threads, deterministic, plan);
  order_items(a, plan);
}

}  // namespace mainboard::cpu
