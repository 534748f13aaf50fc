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
#pragma once

#include "csrc/cuda/decode.h"

namespace mainboard::cuda {

__device__ inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

__device__ inline int warp_sum(int x) { return __reduce_add_sync(0xffffffffu, x); }

__device__ inline int inclusive_sum(int x, int lane) {
  for (int step = 1; step < 32; step *= 2) {
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
  __device__ static Sequence read(const Decode& a, int index) {
    Sequence s;
    s.first_query = a.cu_queries[index];
    s.queries = a.cu_queries[index + 1] - s.first_query;
    s.keys = a.used_keys ? a.used_keys[index] : a.cu_keys[index + 1] - a.cu_keys[index];
    s.first_block = max(0, s.keys - s.queries - a.left) / kBlockKeys;
    s.units = max(1, ceil_div(s.keys - s.first_block * kBlockKeys, unit_keys));
    s.tiles_of_head = ceil_div(s.queries * static_cast<int>(a.group.value), rows);
    constexpr int kLeastUnits = 512 / unit_keys;
    s.piece_units = a.fixed_pieces ? max(kLeastUnits, ceil_div(s.units, kMostPieces)) : 1;
    s.positions = ceil_div(s.units, s.piece_units);
    return s;
  }
  __device__ int length(const Decode& a) const { return tiles_of_head * a.kv_heads * positions; }
};

// What one block does next: units [unit, unit_end) of one tile.
struct Segment {
  int index;  // of the sequence
  Sequence sequence;
  int head, row;  // key head; first row of the tile
  int unit, unit_end;
  // Piece `piece` of `pieces`. The first has its result in slot `first_slot`, the others from
  // `next_slot` on.
  int pieces, piece, first_slot, next_slot, counter;

  __device__ int slot(int i) const { return i == 0 ? first_slot : next_slot + i - 1; }
};

// Walks a block's stretch of the line. All threads of the block hold the same.
template <int rows, int unit_keys>
class Walker {
 public:
  __device__ Walker(const Decode& a, int lane) : a_(a) {
    int mine = 0;
    for (int i = lane; i < a.sequences; i += 32) mine += read(i).length(a);
    const int total = warp_sum(mine);
    const int blocks = static_cast<int>(gridDim.x);
    share_ = max(1, ceil_div(total, blocks));
    at_ = min(total, static_cast<int>(blockIdx.x) * share_);
    end_ = min(total, at_ + share_);
    if (!done()) seek(lane);
  }

  __device__ bool done() const { return at_ >= end_; }

  // The segment at hand.
  __device__ Segment segment() const {
    Segment s;
    s.index = index_;
    s.sequence = sequence_;
    const int from_start = at_ - start_, n = sequence_.positions;
    const int tile = from_start / n, position = from_start % n;
    s.head = tile / sequence_.tiles_of_head;
    s.row = tile % sequence_.tiles_of_head * rows;
    s.unit = position * sequence_.piece_units;
    s.unit_end = min(sequence_.units, (position + taken()) * sequence_.piece_units);
    const int tile_at = at_ - position;
    if (a_.fixed_pieces) {
      s.pieces = n;
      s.piece = position;
      s.first_slot = s.counter = tile_at;
      s.next_slot = tile_at + 1;
    } else {
      const int first = tile_at / share_, block = static_cast<int>(blockIdx.x);
      s.pieces = (tile_at + n - 1) / share_ - first + 1;
      s.piece = block - first;
      s.first_slot = static_cast<int>(gridDim.x) + first;
      s.next_slot = first + 1;
      s.counter = first;
    }
    return s;
  }

  // Goes on to the next segment.
  __device__ void advance() {
    at_ += taken();
    if (done()) return;
    while (at_ >= start_ + sequence_.length(a_)) {
      start_ += sequence_.length(a_);
      sequence_ = read(++index_);
    }
  }

 private:
  __device__ Sequence read(int index) const { return Sequence::read<rows, unit_keys>(a_, index); }

  // Positions that the segment at hand covers.
  __device__ int taken() const {
    const int n = sequence_.positions;
    return a_.fixed_pieces ? 1 : min(n - (at_ - start_) % n, end_ - at_);
  }

  // Finds the sequence that `at_` is in, 32 at a time.
  __device__ void seek(int lane) {
    start_ = 0;
    for (index_ = 0;; index_ += 32) {
      const int i = index_ + lane;
      const int length = i < a_.sequences ? read(i).length(a_) : 0;
      const int sum = inclusive_sum(length, lane);
      const unsigned past = __ballot_sync(0xffffffffu, start_ + sum > at_);
      if (past != 0) {
        const int found = __ffs(static_cast<int>(past)) - 1;
        start_ += __shfl_sync(0xffffffffu, sum - length, found);
        index_ += found;
        break;
      }
      start_ += __shfl_sync(0xffffffffu, sum, 31);
    }
    sequence_ = read(index_);
  }

  const Decode& a_;
  int share_, at_, end_;
  int index_, start_;  // of the sequence at hand; where it begins on the line
  Sequence sequence_;
};

}  // namespace mainboard::cuda
