// Who does what, decided on the device from the lengths, so that a call needs no plan and no
// synchronisation and a captured graph may be replayed with other lengths.
//
// A tile is a key head's row tile in one sequence. Its keys are walked in units: what the block's
// warps load in one step. All tiles' units in a row make a line; each block of the grid takes an
// equal stretch of it, so that all multiprocessors end together. A stretch is a list of segments,
// one for each tile it touches. A tile that is cut has a piece in each block that it touches.
//
// With `fixed_pieces` a position on the line is a piece of a tile instead, cut by the sequence's
// own length alone: the same bits whatever else is in the batch.
//
// Where the grid is launched in clusters, there are no more tiles than clusters and they are about
// equally long, each tile has a cluster to itself: each of its blocks takes one piece, and they are
// joined without a way through memory.
#pragma once

#include "csrc/cuda/decode.h"

namespace mainboard::cuda {

__device__ inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

__device__ inline int warp_sum(int x) { return __reduce_add_sync(0xffffffffu, x); }

__device__ inline int inclusive_sum(int x, int lane) {
  for (int step = 1; step < kLanes; step *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, x, step);
    if (lane >= step) x += other;
  }
  return x;
}

// One sequence's lengths and what follows from them. `rows` is of a tile, `keys` of a unit.
struct Sequence {
  int first_query, queries, keys;
  int first_block;    // the first block of keys that any query sees
  int units;          // of each tile, at least one
  int tiles_of_head;  // row tiles
  int piece_units;    // units to a position on the line
  int positions;      // on the line, of each tile

  template <int rows, int unit_keys>
  __device__ static Sequence read(const Decode& a, int index, bool clustered = false) {
    Sequence s;
    s.first_query = a.cu_queries[index];
    s.queries = a.cu_queries[index + 1] - s.first_query;
    s.keys = a.used_keys ? a.used_keys[index] : a.cu_keys[index + 1] - a.cu_keys[index];
    s.first_block = max(0, s.keys - s.queries - a.left) / kBlockKeys;
    s.units = max(1, ceil_div(s.keys - s.first_block * kBlockKeys, unit_keys));
    const int all_rows = s.queries * static_cast<int>(a.group.value);
    const bool own = all_rows > a.rows_above && all_rows <= a.rows_up_to;
    s.tiles_of_head = own ? ceil_div(all_rows, rows) : 0;
    constexpr int kLeastUnits = 512 / unit_keys;
    s.piece_units = 1;
    s.positions = s.units;
    if (clustered) {
      s.positions = 1 << a.cluster;
      s.piece_units = (s.units + s.positions - 1) >> a.cluster;
    } else if (a.fixed_pieces) {
      s.piece_units = max(kLeastUnits, ceil_div(s.units, kMostPieces));
      s.positions = ceil_div(s.units, s.piece_units);
    }
    return s;
  }
};

// What one block does next: units [unit, unit_end) of one tile.
struct Segment {
  int index;  // of the sequence
  Sequence sequence;
  int head, row;  // key head; first row of the tile
  int unit, unit_end;
  // Piece `piece` of `pieces`; those of a cluster from `pieces` on are empty. The first has its
  // result in slot `first_slot`, the others from `next_slot` on. Each slot has a counter, for
  // pieces that are joined there.
  int pieces, piece, first_slot, next_slot, counter;

  __device__ int slot(int i) const { return i == 0 ? first_slot : next_slot + i - 1; }
};

// Walks a block's stretch of the line. All threads of the block hold the same.
template <int rows, int unit_keys>
class Walker {
 public:
  __device__ Walker(const Decode& a, int lane) : a_(a), clustered_(false) {
    int mine = 0, tiles = 0, longest = 0;
#pragma unroll 1
    for (int i = lane; i < a.sequences; i += kLanes) {
      const Sequence s = read(i);
      mine += length(s);
      tiles += s.tiles_of_head * a_.kv_heads;
      longest = max(longest, length(s) > 0 ? s.positions : 0);
    }
    int total = warp_sum(mine);
    tiles = warp_sum(tiles);
    longest = __reduce_max_sync(0xffffffffu, longest);
    if (fits_clusters(total, tiles, longest)) {
      total = tiles << a.cluster;
      clustered_ = true;
      share_ = 1;
      larger_ = 0;
    } else {
      share_out(total, tiles * longest == total ? longest : 0);
    }
    at_ = min(total, block() * share_ + min(block(), larger_));
    end_ = min(total, at_ + share_ + (block() < larger_));
    if (!done()) seek(lane);
  }

  __device__ bool done() const { return at_ >= end_; }

  // Whether the blocks of each cluster join their one segment among themselves.
  __device__ bool clustered() const { return clustered_; }

  // The segment at hand.
  __device__ Segment segment() const {
    Segment s;
    s.index = index_;
    s.sequence = sequence_;
    const int from_start = at_ - start_, n = sequence_.positions;
    const int tile = from_start / n, position = from_start - tile * n;
    const int head = tile / sequence_.tiles_of_head;
    s.head = head;
    s.row = (tile - head * sequence_.tiles_of_head) * rows;
    s.unit = min(sequence_.units, position * sequence_.piece_units);
    s.unit_end = min(sequence_.units, (position + taken()) * sequence_.piece_units);
    place_pieces(at_ - position, position, &s);
    return s;
  }

  // Goes on to the next segment.
  __device__ void advance() {
    at_ += taken();
    if (done()) return;
#pragma unroll 1
    while (at_ >= start_ + length(sequence_)) {
      start_ += length(sequence_);
      sequence_ = read(++index_);
    }
  }

 private:
  __device__ Sequence read(int index) const {
    return Sequence::read<rows, unit_keys>(a_, index, clustered_);
  }
  // Positions of a sequence on the line.
  __device__ int length(const Sequence& s) const {
    return s.tiles_of_head * a_.kv_heads * s.positions;
  }
  __device__ static int blocks() { return static_cast<int>(gridDim.x); }
  __device__ static int block() { return static_cast<int>(blockIdx.x); }

  __device__ bool fits_clusters(int total, int tiles, int longest) const {
    return a_.cluster != 0 && clusters_pay(total, tiles, longest, blocks(), a_.cluster);
  }

  // Equal shares of the line; where all tiles are `even` long, shares that end where tiles do, if
  // that costs little: a tile that is cut costs more.
  __device__ void share_out(int total, int even) {
    constexpr int kCheap = 2;  // positions
    share_ = total / blocks();
    larger_ = total - share_ * blocks();
    if (even == 0) return;
    const int needed = share_ + (larger_ > 0);
    const int whole =
        needed >= even ? ceil_div(needed, even) * even : ceil_div(even, even / needed);
    if (whole - share_ < kCheap && even % min(whole, even) == 0) {
      share_ = whole;
      larger_ = 0;
    }
  }

  // Which piece of its tile a segment is, where the tile begins on the line at `tile_at`.
  __device__ void place_pieces(int tile_at, int position, Segment* s) const {
    s->piece = position;
    if (clustered_) {
      s->pieces = ceil_div(sequence_.units, sequence_.piece_units);
      return;
    }
    if (a_.fixed_pieces) {
      s->pieces = sequence_.positions;
      s->first_slot = s->counter = tile_at;
      s->next_slot = tile_at + 1;
    } else {
      const int first = block_at(tile_at);
      s->pieces = block_at(tile_at + sequence_.positions - 1) - first + 1;
      s->piece = block() - first;
      s->first_slot = blocks() + first;
      s->next_slot = first + 1;
      s->counter = 2 * blocks() + first;  // behind those of the slots
    }
  }

  // The block whose stretch has a position.
  __device__ int block_at(int position) const {
    const int of_larger = larger_ * (share_ + 1);
    return position < of_larger ? position / (share_ + 1)
                                : larger_ + (position - of_larger) / share_;
  }

  // Positions that the segment at hand covers.
  __device__ int taken() const {
    const int n = sequence_.positions;
    return clustered_ || a_.fixed_pieces ? 1 : min(n - (at_ - start_) % n, end_ - at_);
  }

  // Finds the sequence that `at_` is in, one for each lane at a time.
  __device__ void seek(int lane) {
    start_ = 0;
#pragma unroll 1
    for (index_ = 0;; index_ += kLanes) {
      const int i = index_ + lane;
      const int here = i < a_.sequences ? length(read(i)) : 0;
      const int sum = inclusive_sum(here, lane);
      const unsigned past = __ballot_sync(0xffffffffu, start_ + sum > at_);
      if (past != 0) {
        const int found = __ffs(static_cast<int>(past)) - 1;
        start_ += __shfl_sync(0xffffffffu, sum - here, found);
        index_ += found;
        break;
      }
      start_ += __shfl_sync(0xffffffffu, sum, kLanes - 1);
    }
    sequence_ = read(index_);
  }

  const Decode& a_;
  bool clustered_;
  int share_, larger_;  // positions of a block; the first `larger_` blocks have one more
  int at_, end_;
  int index_, start_;  // of the sequence at hand; where it begins on the line
  Sequence sequence_;
};

}  // namespace mainboard::cuda
