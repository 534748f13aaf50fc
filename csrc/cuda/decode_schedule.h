// Who does what, decided on the device from the lengths, so that a call needs no plan and no
// synchronisation and a captured graph may be replayed with other lengths.
//
// A tile is a key head's row tile in one sequence. Its keys are walked in units: what the block's
// warps load in one step. All tiles' units in a row make a line, of which each block of the grid
// takes its stretch (line.h): a list of segments, one for each tile that the stretch touches.
//
// With `fixed_pieces` a position on the line is a piece of a tile instead, cut by the sequence's
// own length alone: the same bits whatever else is in the batch.
//
// Where the grid is launched in clusters, there are no more tiles than clusters and they are about
// equally long, each tile has a cluster to itself: each of its blocks takes one piece, and they are
// joined without a way through memory.
#pragma once

#include "csrc/cuda/line.h"

namespace mainboard::cuda {

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

// What one block does next: units [unit, unit_end) of one tile. Where a cluster has the tile, its
// pieces from `pieces` on are empty, and none has a slot.
struct Segment : Pieces {
  int index;  // of the sequence
  Sequence sequence;
  int head, row;  // key head; first row of the tile
  int unit, unit_end;
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
      clustered_ = true;
      total = tiles << a.cluster;
      line_.share_alike(1);
    } else {
      constexpr int kCheap = 2;  // positions
      line_.share_out(walkers(), total, tiles * longest == total ? longest : 0, kCheap);
    }
    line_.begin(walkers(), total);
    if (!done()) seek(lane);
  }

  __device__ bool done() const { return line_.done(); }

  // Whether the blocks of each cluster join their one segment among themselves.
  __device__ bool clustered() const { return clustered_; }

  // The segment at hand.
  __device__ Segment segment() const {
    Segment s;
    s.index = index_;
    s.sequence = sequence_;
    const int from_start = line_.at() - start_, n = sequence_.positions;
    const int tile = from_start / n, position = from_start - tile * n;
    const int head = tile / sequence_.tiles_of_head;
    s.head = head;
    s.row = (tile - head * sequence_.tiles_of_head) * rows;
    s.unit = min(sequence_.units, position * sequence_.piece_units);
    s.unit_end = min(sequence_.units, (position + taken()) * sequence_.piece_units);
    static_cast<Pieces&>(s) = pieces(line_.at() - position, position);
    return s;
  }

  // Goes on to the next segment.
  __device__ void advance() {
    line_.go_on(taken());
    if (done()) return;
#pragma unroll 1
    while (line_.at() >= start_ + length(sequence_)) {
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
  __device__ static Walkers walkers() {
    return {static_cast<int>(gridDim.x), static_cast<int>(blockIdx.x)};
  }

  __device__ bool fits_clusters(int total, int tiles, int longest) const {
    return a_.cluster != 0 && clusters_pay(total, tiles, longest, walkers().count, a_.cluster);
  }

  // Which piece of its tile a segment is, where the tile begins on the line at `tile_at`.
  __device__ Pieces pieces(int tile_at, int position) const {
    const int n = sequence_.positions;
    if (clustered_) {
      Pieces those;
      those.pieces = ceil_div(sequence_.units, sequence_.piece_units);
      those.piece = position;
      return those;
    }
    return a_.fixed_pieces ? Pieces::fixed(tile_at, position, n)
                           : line_.pieces(walkers(), tile_at, n);
  }

  // Positions that the segment at hand covers.
  __device__ int taken() const {
    const int n = sequence_.positions;
    return clustered_ || a_.fixed_pieces ? 1 : line_.left((line_.at() - start_) % n, n);
  }

  // Finds the sequence that the stretch begins in.
  __device__ void seek(int lane) {
    const SequencePlace place =
        find_sequence(line_.at(), a_.sequences, lane, [this](int i) { return length(read(i)); });
    index_ = place.index;
    start_ = place.start;
    sequence_ = read(index_);
  }

  const Decode& a_;
  bool clustered_;
  Line line_;
  int index_, start_;  // of the sequence at hand; where it begins on the line
  Sequence sequence_;
};

}  // namespace mainboard::cuda
