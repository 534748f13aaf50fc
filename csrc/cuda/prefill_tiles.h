// Who does what: the tiles of a call in the order in which the blocks of the grid take them.
//
// Made on the device from the lengths, so that a call needs no plan and no synchronisation. Within
// a sequence, tiles that see most keys come first, and so many heads go side by side that their
// keys and values stay in the second-level cache.
#pragma once

#include "csrc/cuda/prefill.h"

namespace mainboard::cuda {

inline constexpr int kNoTile = -1;
inline constexpr int64_t kCacheBytes = int64_t{32} << 20;

// One tile of a sequence: `pack` heads from `head` on, and tokens from `token` on.
struct Tile {
  int sequence;  // or kNoTile
  int first_query, queries, keys, first_key;
  int head, token;
  int right;               // of the window
  int begin, end, blocks;  // keys that any of its rows sees, in grains; blocks of them

  // Blocks are walked from the last to the first, which has what is left over.
  __device__ int first_of(int block, int block_keys) const {
    return max(begin, end - (block + 1) * block_keys);
  }
};

// Takes tiles for one block of the grid, whichever comes next when it is ready; a whole warp asks.
// Each lane holds one of 32 sequences, so that most tiles are found without reading memory.
template <int rows, int block_keys, int grain, int bytes_of_key>
class TileWalker {
 public:
  __device__ explicit TileWalker(const Prefill& a)
      : a_(a), lane_(threadIdx.x % 32), number_(static_cast<int>(blockIdx.x)) {
    load();
  }

  __device__ Tile next() {
    const int number = from(number_, 0);
    unsigned past;
    while ((past = __ballot_sync(0xffffffffu, end_ > number)) == 0) {
      if (first_ + 32 >= a_.sequences) {
        if (lane_ == 0) leave();
        return {kNoTile};
      }
      first_ += 32;
      load();
    }
    // Asked for now, needed when this tile has been copied.
    if (lane_ == 0) number_ = static_cast<int>(gridDim.x) + atomicAdd(&a_.counters[0], 1);
    const int owner = __ffs(static_cast<int>(past)) - 1;
    Tile t;
    t.sequence = first_ + owner;
    t.first_query = from(first_query_, owner);
    t.queries = from(queries_, owner);
    t.first_key = from(first_key_, owner);
    t.keys = from(keys_, owner);
    place(t, number - from(end_ - tiles(), owner));
    return t;
  }

 private:
  __device__ static int from(int x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }

  __device__ int tiles() const {
    if (queries_ * a_.group <= a_.skip_rows) return 0;
    return (queries_ * a_.pack + rows - 1) / rows * (a_.heads / a_.pack);
  }

  // Reads the 32 sequences from `first_` on, and where their tiles end among all.
  __device__ void load() {
    const int before = from(end_, 31), i = first_ + lane_;
    first_query_ = queries_ = first_key_ = keys_ = 0;
    if (i < a_.sequences) {
      first_query_ = a_.cu_queries[i];
      queries_ = a_.cu_queries[i + 1] - first_query_;
      if (a_.cu_keys != nullptr) {
        first_key_ = a_.cu_keys[i];
        keys_ = a_.cu_keys[i + 1] - first_key_;
      }
      if (a_.used_keys != nullptr) keys_ = a_.used_keys[i];
    }
    end_ = tiles();
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, end_, step);
      if (lane_ >= step) end_ += other;
    }
    end_ += before;
  }

  // Fills in the tile at this place among those of its sequence.
  __device__ void place(Tile& t, int at) const {
    const int row_tiles = (t.queries * a_.pack + rows - 1) / rows, sets = a_.heads / a_.pack;
    const int cached = static_cast<int>(kCacheBytes / (int64_t{max(t.keys, 1)} * bytes_of_key));
    const int wide = min(sets, max(1, cached) * (a_.group / a_.pack));
    const int section = at / (row_tiles * wide), in_section = at - section * row_tiles * wide;
    const int here = min(wide, sets - section * wide), tile = in_section / here;
    t.head = (section * wide + in_section - tile * here) * a_.pack;
    const int row = (row_tiles - 1 - tile) * rows;
    t.token = row / a_.pack;
    const int last = (min(row + rows, t.queries * a_.pack) - 1) / a_.pack;
    const int shift = t.keys - t.queries;
    t.right = a_.causal_flags && a_.causal_flags[t.sequence] ? 0 : a_.right;
    const int64_t end = min(int64_t{t.keys}, int64_t{last} + shift + t.right + 1);
    t.begin = max(0, t.token + shift - a_.left) / grain * grain;
    t.end = end <= 0 ? 0 : static_cast<int>((end + grain - 1) / grain * grain);
    t.end = max(t.end, t.begin);
    t.blocks = (t.end - t.begin + block_keys - 1) / block_keys;
  }

  // Leaves the counters as they were found, if this block is the last.
  __device__ void leave() const {
    if (atomicAdd(&a_.counters[1], 1) != static_cast<int>(gridDim.x) - 1) return;
    a_.counters[0] = a_.counters[1] = 0;
  }

  const Prefill& a_;
  int lane_;
  int number_;                                    // of the next tile, in lane 0
  int first_ = 0;                                 // of the 32 sequences at hand
  int first_query_, queries_, first_key_, keys_;  // of this lane's sequence
  int end_ = 0;                                   // of its tiles among all
};

}  // namespace mainboard::cuda
