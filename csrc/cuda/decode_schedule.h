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

// What a call says of one sequence, as it stands in memory.
struct alignas(16) Bounds {
  int query, query_end, key, key_end;

  // Past the first level of the cache: the grid before may be about to change them
  // (decode_kernel.h), and whether it did has to be seen.
  __device__ static Bounds read(const Decode& a, int index) {
    Bounds b;
    b.query = __ldcg(a.cu_queries + index);
    b.query_end = __ldcg(a.cu_queries + index + 1);
    b.key = a.used_keys ? 0 : __ldcg(a.cu_keys + index);
    b.key_end = __ldcg(a.used_keys ? a.used_keys + index : a.cu_keys + index + 1);
    return b;
  }
  // If there is such a sequence.
  __device__ static Bounds read_if_any(const Decode& a, int index) {
    return index < a.sequences ? read(a, index) : Bounds{};
  }
  __device__ bool operator==(const Bounds& b) const {
    return query == b.query && query_end == b.query_end && key == b.key && key_end == b.key_end;
  }
};

// One sequence's lengths.
struct Lengths {
  int first_query, queries, keys;

  __device__ static Lengths of(const Bounds& b) {
    return {b.query, b.query_end - b.query, b.key_end - b.key};
  }
};

// What follows from a sequence's lengths. `rows` is of a tile, `keys` of a unit.
struct Sequence : Lengths {
  int first_block;    // the first block of keys that any query sees
  int units;          // of each tile, at least one
  int tiles_of_head;  // row tiles
  int piece_units;    // units to a position on the line
  int positions;      // on the line, of each tile

  template <int rows, int unit_keys>
  __device__ static Sequence of(const Decode& a, const Lengths& lengths, bool clustered = false) {
    Sequence s;
    static_cast<Lengths&>(s) = lengths;
    s.first_block = max(0, s.keys - s.queries - a.left) / kBlockKeys;
    s.units = max(1, ceil_div(max(0, s.keys - s.first_block * kBlockKeys), unit_keys));
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

  // Whether all that it has is where the call's tensors are, be the lengths what they may.
  __device__ bool is_within(const Decode& a) const {
    const Sequence& s = sequence;
    return 0 <= unit && unit <= unit_end && 0 <= head && head < a.kv_heads && 0 <= row &&
           0 <= s.first_query && 0 <= s.queries && s.queries <= a.tokens - s.first_query &&
           0 <= s.keys && s.keys <= a.most_keys;
  }
};

// Walks a block's stretch of the line. All threads of the block hold the same.
template <int rows, int unit_keys>
class Walker {
 public:
  static constexpr int kMostFound = 256;  // sequences

  // `found` has room for the bounds of so many sequences, while a plan is made.
  __device__ Walker(const Decode& a, Bounds* found) : a_(a), found_(found) {}
  __device__ Walker& operator=(const Walker& w) {
    clustered_ = w.clustered_;
    line_ = w.line_;
    index_ = w.index_;
    tile_ = w.tile_;
    position_ = w.position_;
    sequence_ = w.sequence_;
    return *this;
  }

  // Whether a warp keeps the lengths of all sequences, so that it may plan before it may read them,
  // and check them then: `now` are the lane's first sequence's.
  __device__ bool may_plan_early() const { return a_.sequences <= kMostFound; }
  __device__ bool holds(int lane, Bounds now) const {
    bool same = true;
#pragma unroll 1
    for (int i = lane; i < a_.sequences; i += kLanes) {
      const Bounds next = Bounds::read_if_any(a_, i + kLanes);
      same &= now == found_[i];
      now = next;
    }
    return __all_sync(0xffffffffu, same);
  }

  // Finds the block's stretch. Whatever the lengths are, it comes to an end.
  __device__ void plan(int lane) {
    clustered_ = false;
    Bounds bounds = Bounds::read_if_any(a_, lane);
    int mine = 0, own_tiles = 0, longest = 0;
#pragma unroll 1
    for (int i = lane; i < a_.sequences; i += kLanes) {
      const Bounds own = bounds;
      bounds = Bounds::read_if_any(a_, i + kLanes);  // the next, while this is looked at
      if (may_plan_early()) found_[i] = own;
      const Sequence s = sequence_of(own);
      mine += length(s);
      own_tiles += s.tiles_of_head * a_.kv_heads;
      longest = max(longest, length(s) > 0 ? s.positions : 0);
    }
    int total = warp_sum(mine);
    const int tiles = warp_sum(own_tiles);
    longest = __reduce_max_sync(0xffffffffu, longest);
    line_.share_equally(walkers(), total);
    if (fits_clusters(tiles, longest)) {
      clustered_ = true;
      total = tiles << a_.cluster;
      line_.share_alike(1);
    } else if (tiles * longest == total && total > 0) {
      constexpr int kCheap = 2;  // positions
      line_.end_with_tiles(longest, kCheap);
    }
    line_.begin(walkers(), total);
    __syncwarp();
    if (!done()) seek(lane, clustered_ ? own_tiles << a_.cluster : mine);
  }

  __device__ bool done() const { return line_.done(); }

  // Whether the blocks of each cluster join their one segment among themselves.
  __device__ bool clustered() const { return clustered_; }

  // The segment at hand.
  __device__ Segment segment() const {
    Segment s;
    s.index = index_;
    s.sequence = sequence_;
    const int tiles = sequence_.tiles_of_head;
    s.head = tiles == 1 ? tile_ : quotient(tile_, tiles);
    s.row = (tile_ - s.head * tiles) * rows;
    s.unit = min(sequence_.units, position_ * sequence_.piece_units);
    s.unit_end = min(sequence_.units, (position_ + taken()) * sequence_.piece_units);
    static_cast<Pieces&>(s) = pieces(line_.at() - position_);
    return s;
  }

  // Goes on to the next segment.
  __device__ void advance() {
    const int step = taken();
    line_.go_on(step);
    position_ += step;
    if (position_ < sequence_.positions || done()) return;
    position_ = 0;
    ++tile_;
#pragma unroll 1
    while (tile_ >= sequence_.tiles_of_head * a_.kv_heads) {
      tile_ = 0;
      sequence_ = sequence_of(Bounds::read(a_, ++index_));
    }
  }

 private:
  __device__ Sequence sequence_of(const Bounds& bounds) const {
    return Sequence::of<rows, unit_keys>(a_, Lengths::of(bounds), clustered_);
  }
  // Positions of a sequence on the line.
  __device__ int length(const Sequence& s) const {
    return s.tiles_of_head * a_.kv_heads * s.positions;
  }
  __device__ static Walkers walkers() {
    return {static_cast<int>(gridDim.x), static_cast<int>(blockIdx.x)};
  }

  __device__ bool fits_clusters(int tiles, int longest) const {
    return a_.cluster != 0 && clusters_pay(tiles, line_.largest_share(), longest, walkers().count,
                                           a_.cluster, a_.spread_units, a_.slot_rows);
  }

  // Which piece of its tile the segment at hand is; the tile begins on the line at `tile_at`.
  __device__ Pieces pieces(int tile_at) const {
    const int n = sequence_.positions;
    if (clustered_) {
      Pieces those;
      those.pieces = ceil_div(sequence_.units, sequence_.piece_units);
      those.piece = position_;
      return those;
    }
    return a_.fixed_pieces ? Pieces::fixed(tile_at, position_, n)
                           : line_.pieces(walkers(), tile_at, n);
  }

  // Positions that the segment at hand covers.
  __device__ int taken() const {
    return clustered_ || a_.fixed_pieces ? 1 : line_.left(position_, sequence_.positions);
  }

  __device__ Bounds found(int i) const {
    return may_plan_early() ? found_[i] : Bounds::read(a_, i);
  }

  // Finds where the stretch begins. Of few sequences the lane knows its `own` one's length.
  __device__ void seek(int lane, int own) {
    const bool few = a_.sequences <= kLanes;
    const SequencePlace place = find_sequence(line_.at(), a_.sequences, lane, [&](int i) {
      return few ? own : length(sequence_of(found(i)));
    });
    index_ = min(place.index, a_.sequences - 1);
    sequence_ = sequence_of(found(index_));
    const int from_start = line_.at() - place.start, n = sequence_.positions;
    tile_ = from_start < n ? 0 : quotient(from_start, n);
    position_ = from_start - tile_ * n;
  }

  const Decode& a_;
  Bounds* const found_;
  bool clustered_;
  Line line_;
  int index_, tile_, position_;  // of the sequence, the tile in it, the position in that
  Sequence sequence_;
};

}  // namespace mainboard::cuda
