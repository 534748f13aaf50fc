// The keys and values on their way in: every warp keeps a ring of stages full by asynchronous
// copies, and runs ahead of its arithmetic across the ends of tiles, so that memory never idles.
#pragma once

#include "csrc/cuda/decode_schedule.h"
#include "csrc/cuda/ptx.h"
#include "csrc/cuda/scalar.h"

namespace mainboard::cuda {

inline constexpr int kLineBytes = 128;  // of memory and of all banks

// Sizes that follow from the types, the head dimension, the row tiles of a block and how many
// neighbouring key heads it walks side by side. Memory gives lines of 256 bytes faster than ones of
// 128: where a head's rows are short, two heads make one row of a cache, and share the 16 rows of a
// tile. And it gives a page that is read at once faster than one of which each block wants a part:
// the warps may have a head each, or two, of the same keys.
template <class T_, class KV_, int dim_, int row_tiles_, int warp_heads_ = 1, int head_warps_ = 1,
          int warps_ = kWarps>
struct Shape {
  using T = T_;    // queries and output
  using KV = KV_;  // cache
  static constexpr int dim = dim_, row_tiles = row_tiles_;
  static constexpr int warp_heads = warp_heads_, head_warps = head_warps_;
  static constexpr int heads = warp_heads * head_warps;
  static_assert(heads == 1 || (warp_heads <= 2 && row_tiles == 1));
  static constexpr bool fp8 = is_fp8_type<KV>;
  using Matrix = std::conditional_t<fp8, __half, T>;  // operands of the matrix unit

  static constexpr int rows = kTileRows * row_tiles * head_warps;  // of a block's tile
  static constexpr int head_rows = rows / heads;
  static constexpr int head_bytes = dim * static_cast<int>(sizeof(KV)),
                       row_bytes = warp_heads * head_bytes;
  // A line of memory comes into one line of shared memory, or takes twice as long to write: its
  // chunks of 16 bytes change places by the row, so that eight rows' are on different banks. Rows
  // of broken lines are apart by an odd number of chunks instead.
  static constexpr bool swizzled = row_bytes % kLineBytes == 0;
  static constexpr int pitch = swizzled ? row_bytes : (row_bytes / 16 | 1) * 16;
  // Of keys, in one warp's stage.
  static constexpr int blocks = row_bytes <= 128 || (fp8 && warp_heads == 1) ? 2 : 1;
  // The sums of long rows are more than a warp's registers hold: two warps have half of the columns
  // each, of the same rows and keys. They copy those together, and both find the weights.
  static constexpr int columns = dim > 128 ? 2 : 1;
  static constexpr int sharing = columns * row_tiles;  // warps that share their keys
  static constexpr int team = sharing * head_warps;    // with other rows of the tile, or columns
  static constexpr int warps = team > 2 && columns > 1 ? 2 * kWarps : team > warps_ ? team : warps_;
  static constexpr int threads = 32 * warps;
  static constexpr int joiners = head_warps;     // of pieces: the block, or each warp
  static constexpr int parts = warps / columns;  // of a stage, each copied by `columns` warps
  static constexpr int unit_blocks = parts / head_warps * blocks;
  static constexpr int unit_keys = unit_blocks * kBlockKeys;
  // A warp's partial result is kept where its last keys and values were.
  static constexpr int sums_dim = dim / columns, sums_pitch = sums_dim + 8;
  static constexpr int tensor_bytes = blocks * kBlockKeys * pitch;
  static constexpr int sums_bytes = kTileRows * sums_pitch * static_cast<int>(sizeof(float));
  static constexpr int copied_bytes = 2 * tensor_bytes, kept_bytes = columns * sums_bytes;
  static constexpr int stage_bytes = copied_bytes > kept_bytes ? copied_bytes : kept_bytes;
  static constexpr int blocks_per_multiprocessor = warps == kWarps ? 2 : 1;
  // Long rows of queries are read from shared memory each time: registers hold the sums.
  static constexpr bool shares_queries = dim > 128 || (dim == 128 && row_tiles > 1);
  static constexpr int query_pitch = 2 * dim + 16;
  static constexpr int query_bytes = shares_queries ? rows * query_pitch : 0;
  static constexpr int memory = (blocks_per_multiprocessor == 2 ? 112 : 225) * 1024 - query_bytes;
  static constexpr int most_stages = memory / (parts * stage_bytes);
  static constexpr int stages = most_stages < 6 ? most_stages : 6;
  static_assert(stages >= 2 && stage_bytes % kLineBytes == 0);
  // Blocks of a cluster keep what others send them in one warp's stages, all but the first.
  static constexpr int inbox_bytes = (stages - 1) * stage_bytes;
  static constexpr int most_items = rows * dim / 4 + kMostClusterBlocks;  // at most, with the rest
  static constexpr bool joins_in_cluster =
      warps == kWarps && row_tiles * head_warps == 1 && most_items * (16 + 8) <= inbox_bytes;
  // An odd number of 16-column steps reads 16 bytes past the last row.
  static constexpr int ring_bytes = parts * stages * stage_bytes + (swizzled ? 0 : 16);
  static constexpr int shared_bytes = ring_bytes + query_bytes;
};

// Where chunk `chunk` of row `row` is, from where the first row begins.
template <class S>
__device__ constexpr int chunk_offset(int row, int chunk) {
  return row * S::pitch + (S::swizzled ? chunk ^ row % 8 : chunk) * 16;
}
// The same for a lane that has chunk 0 or 1 of its row at `at`: the address `bytes` further on in
// the row, an even number of chunks.
template <class S>
__device__ uint32_t further_in_row(uint32_t at, int bytes) {
  const int in_line = S::swizzled ? bytes % kLineBytes : 0;
  return (at ^ in_line) + (bytes - in_line);
}

// One warp's copies. Part p of a stage has the blocks of keys p * blocks .. of each unit, or all
// blocks, of a head of its own.
template <class S>
class Loader {
 public:
  using Walk = Walker<S::rows, S::unit_keys>;

  // `ring` is of the warp's part.
  __device__ Loader(const Decode& a, uint32_t ring, int warp, int lane)
      : a_(a),
        walk_(a, nullptr),
        ring_(ring),
        part_(warp / S::columns),
        lane_(lane),
        first_copy_(warp % S::columns * 32 + lane) {}

  // Prepares to begin with a walk's segment at hand; reads nothing.
  __device__ void place(const Walk& walk, const Segment& first) {
    walk_ = walk;
    enter(first);
    if (unit_ == unit_end_ && walk_.clustered()) walk_.advance();  // there is no more
  }
  // Finds the segment's keys: reads the table. Returns what has to be the same when the grid before
  // has ended, if it is called before.
  __device__ int begin(const Segment& first) {
    looked_up_ = unit_;
    page_ = read_page();
    if (a_.table) {
      const int found = page_;
      page_ = min(max(page_, 0), a_.pages - 1);
      return found;
    }
    const int begin = __ldcg(a_.cu_keys + first.index);
    find_rows(min(max(begin, 0), a_.most_keys - keys_));
    return begin;
  }
  // What `begin` would find.
  __device__ int look_again(const Segment& first) const {
    return a_.table ? read_page() : __ldcg(a_.cu_keys + first.index);
  }
  // Has the L2 bring the first keys and values.
  __device__ void foresee() const {
    const int row = lane_ % kBlockKeys;
    constexpr int kLine = 128;
#pragma unroll 1
    for (int unit = unit_; unit < min(unit_end_, unit_ + kForeseenUnits); ++unit) {
#pragma unroll
      for (int n = 0; n < S::blocks; ++n) {
        const Rows rows = rows_of(unit, n);
        if (row < rows.used) {
          const char* const from = lane_ < kBlockKeys ? rows.k + int64_t{a_.k.token} * row
                                                      : rows.v + int64_t{a_.v.token} * row;
#pragma unroll
          for (int at = 0; at < S::row_bytes; at += kLine) prefetch(from + at);
        }
      }
    }
  }
  // Starts the copies of the segment's first units, one to a stage, and returns how many.
  __device__ int fill() {
    int stage = 0;
#pragma unroll 1
    for (; stage < S::stages - 1 && unit_ < unit_end_; ++stage, ++unit_) {
      copy(stage);
      commit_copies();
    }
    return stage;
  }

  // Starts the copies of the next unit into a stage; nothing once the block's stretch is loaded.
  __device__ void load(int stage) {
    if (!walk_.done()) {
      copy(stage);
      ++unit_;
      go_on();
    }
    commit_copies();
  }
  // Goes to the next segment when all of one is on its way.
  __device__ void go_on() {
    if (unit_ == unit_end_) {
      if (walk_.done()) return;
      walk_.advance();
      if (!walk_.done()) {
        const Segment next = walk_.segment();
        enter(next);
        if (!a_.table) find_rows(a_.cu_keys[next.index]);
        look_up();
      }
    } else if (unit_ == looked_up_ + kAhead) {
      look_up();
    }
  }

 private:
  static constexpr int kAhead = 32 / S::blocks;  // units whose pages a warp holds, one a lane
  static constexpr int kForeseenUnits = 1;
  static constexpr int kChunks = S::row_bytes / 16;
  static constexpr int kAll = kBlockKeys * kChunks;   // copies for a block of keys or values
  static constexpr int kTeamLanes = 32 * S::columns;  // that share them
  static constexpr int kCopies = (kAll + kTeamLanes - 1) / kTeamLanes;  // of a lane

  __device__ void enter(const Segment& s) {
    unit_ = s.unit;
    unit_end_ = s.unit_end;
    keys_ = s.sequence.keys;
    block_ = s.sequence.first_block + part_ / S::head_warps * S::blocks;
    const int beside = part_ % S::head_warps * S::row_bytes;
    k_ = a_.k.data + s.head * a_.k.head + beside;
    v_ = a_.v.data + s.head * a_.v.head + beside;
    table_ = a_.table ? a_.table + s.index * a_.table_row : nullptr;
  }

  // Dense keys begin where the sequences before end.
  __device__ void find_rows(int64_t begin) {
    k_ += begin * a_.k.token;
    v_ += begin * a_.v.token;
  }

  __device__ int block_of(int unit, int n) const { return block_ + unit * S::unit_blocks + n; }

  // Reads the table for the next `kAhead` units.
  __device__ void look_up() {
    looked_up_ = unit_;
    page_ = read_page();
  }
  __device__ int read_page() const {
    const int block = block_of(unit_ + lane_ / S::blocks, lane_ % S::blocks);
    const bool used = block * kBlockKeys < keys_ && unit_ + lane_ / S::blocks < unit_end_;
    if (!used) return 0;
    const int page = a_.page_blocks.divide(block);
    return table_ ? __ldcg(table_ + page) : page;
  }

  // Where a block of keys is.
  struct Rows {
    const char *k, *v;
    int used;
  };
  __device__ Rows rows_of(int unit, int n) const {
    const int block = block_of(unit, n);
    const int64_t page = __shfl_sync(0xffffffffu, page_, (unit - looked_up_) * S::blocks + n);
    const int slot = block - a_.page_blocks.divide(block) * a_.page_blocks.value;
    const int64_t token = slot * kBlockKeys;
    return {k_ + page * a_.k.page + token * a_.k.token, v_ + page * a_.v.page + token * a_.v.token,
            keys_ - block * kBlockKeys};
  }

  __device__ void copy(int stage) {
    const uint32_t to = ring_ + stage * S::stage_bytes;
#pragma unroll
    for (int n = 0; n < S::blocks; ++n) {
      const Rows rows = rows_of(unit_, n);
      const uint32_t k_to = to + n * kBlockKeys * S::pitch;
      copy_rows(k_to, rows.k, a_.k.token, rows.used);
      copy_rows(k_to + S::tensor_bytes, rows.v, a_.v.token, rows.used);
    }
  }

  __device__ void copy_rows(uint32_t to, const char* from, int stride, int rows) {
    if (rows >= kBlockKeys) {
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        const int at = i * kTeamLanes + first_copy_, row = at / kChunks, chunk = at % kChunks;
        if (kAll % kTeamLanes != 0 && row >= kBlockKeys) break;
        copy_async(to + chunk_offset<S>(row, chunk), from + int64_t{stride} * row + chunk * 16);
      }
    } else {
      // Zeros, not what is there: a weight of zero times NaN is NaN.
#pragma unroll 1
      for (int i = 0; i < kCopies; ++i) {
        const int at = i * kTeamLanes + first_copy_, row = at / kChunks, chunk = at % kChunks;
        if (row >= kBlockKeys) break;
        const bool used = row < rows;
        copy_async_or_zero(to + chunk_offset<S>(row, chunk),
                           used ? from + int64_t{stride} * row + chunk * 16 : a_.k.data,
                           used ? 16 : 0);
      }
    }
  }

  const Decode& a_;
  Walk walk_;
  const uint32_t ring_;
  const int part_, lane_, first_copy_;
  const char *k_, *v_;
  const int* table_;
  int unit_, unit_end_, keys_, block_;
  int looked_up_, page_;
};

}  // namespace mainboard::cuda
