// Who does what in latent decode, decided on the device from the lengths; see line.h and
// decode_schedule.h.
//
// Here all tiles of a sequence read the same keys. So `abreast` neighbours walk one line together,
// each for its own of as many tiles, and memory is read once for all of them. A tile is 64 rows of
// queries x heads; a band is `abreast` tiles. A neighbour is a cluster of blocks, mostly of one: a
// larger one divides each segment among its blocks.
#pragma once

#include "csrc/cuda/latent.h"
#include "csrc/cuda/line.h"

namespace mainboard::cuda {

// What one block does next: units [unit, unit_end) of one tile.
struct LatentSegment {
  int index;  // of the sequence
  int first_query, queries, keys;
  int row;             // first of the tile
  int unit, unit_end;  // the block's own, of its cluster's
  int sharers;         // blocks of the cluster that have any; 0: there is no segment any more
};

// Which piece of its tile a segment is. Its neighbours' tiles have slots and counters between.
struct LatentPieces : Pieces {
  int abreast, member;

  __device__ int own_slot(int i) const { return slot(i) * abreast + member; }
  __device__ int own_counter() const { return counter * abreast + member; }
};

// A row of a tile as a token and a head.
struct LatentPlace {
  int token, head;
  bool used;

  __device__ LatentPlace(const LatentDecode& a, const LatentSegment& s, int in_tile) {
    const int row = s.row + in_tile, heads = static_cast<int>(a.heads.value);
    const int query = a.heads.divide(row);
    used = query < s.queries;
    token = s.first_query + query;
    head = row - query * heads;
  }
};

// Walks a block's stretch of the line. All threads of a warp hold the same.
template <int unit_keys>
class LatentWalker {
 public:
  __device__ LatentWalker(const LatentDecode& a, int lane)
      : a_(a), walkers_{a.walkers, a.together.divide(static_cast<int>(blockIdx.x))} {
    const int in_band =
        static_cast<int>(blockIdx.x) - walkers_.own * static_cast<int>(a.together.value);
    member_ = in_band >> a.cluster;
    rank_ = in_band - (member_ << a.cluster);
    Sequence own = {};  // of this lane: all that most calls have
    own.positions = 1;
    if (lane < a.sequences) own = read(lane);
    int mine = length(own), bands = own.bands, longest = own.bands > 0 ? own.positions : 0;
#pragma unroll 1
    for (int i = lane + kLanes; i < a.sequences; i += kLanes) {
      const Sequence s = read(i);
      mine += length(s);
      bands += s.bands;
      longest = max(longest, s.bands > 0 ? s.positions : 0);
    }
    const int total = warp_sum(mine);
    longest = __reduce_max_sync(0xffffffffu, longest);
    const int even = warp_sum(bands) * longest == total ? longest : 0;
    line_.share_out(walkers_, total, even, kCutCost << a.cluster,
                    a.fixed_pieces ? 0 : kLeastShare << a.cluster);
    line_.begin(walkers_, total);
    if (!line_.done()) seek(own, lane);
  }

  // The next segment.
  __device__ LatentSegment next() {
    LatentSegment s;
    s.sharers = 0;
    while (!line_.done() && s.sharers == 0) {
      const int from_start = line_.at() - start_, n = sequence_.positions;
      const int band = from_start / n, position = from_start - band * n;
      const int taken = a_.fixed_pieces ? 1 : line_.left(position, n);
      const int row = (band * a_.abreast + member_) * kLatentRows;
      // In a pair, a tile of no rows too: its block copies keys for the other.
      if (a_.pairs || row < sequence_.queries * static_cast<int>(a_.heads.value)) {
        s.index = index_;
        s.first_query = sequence_.first_query;
        s.queries = sequence_.queries;
        s.keys = sequence_.keys;
        s.row = row;
        divide(position * sequence_.piece_units,
               min(sequence_.units, (position + taken) * sequence_.piece_units), &s);
        band_at_ = line_.at() - position;
        position_ = position;
        positions_ = n;
      }
      advance(taken);
    }
    return s;
  }

  // Of that segment. It takes time, and nobody needs it before the segment's end.
  __device__ LatentPieces pieces() const {
    LatentPieces p;
    static_cast<Pieces&>(p) = a_.fixed_pieces ? Pieces::fixed(band_at_, position_, positions_)
                                              : line_.pieces(walkers_, band_at_, positions_);
    p.abreast = a_.abreast;
    p.member = member_;
    return p;
  }

 private:
  // Positions: about what it costs to cut a tile. More than its time: where the card's power is
  // what limits it, blocks that wait cost nothing.
  static constexpr int kCutCost = 9;
  static constexpr int kLeastShare = 2;  // positions: fewer cost more to join than they save

  // One sequence's lengths and what follows from them.
  struct Sequence {
    int first_query, queries, keys;
    int units, bands;
    int piece_units, positions;  // units to a position on the line, and positions of a band
  };

  __device__ Sequence read(int index) const {
    Sequence s;
    s.first_query = a_.cu_queries[index];
    s.queries = a_.cu_queries[index + 1] - s.first_query;
    s.keys = a_.used_keys[index];
    s.units = max(1, ceil_div(s.keys, unit_keys));
    const int rows = s.queries * static_cast<int>(a_.heads.value);
    s.bands = a_.band_rows.divide(rows + static_cast<int>(a_.band_rows.value) - 1);
    constexpr int kLeastUnits = 1024 / unit_keys;
    s.piece_units = 1;
    s.positions = s.units;
    if (a_.fixed_pieces) {
      s.piece_units = max(kLeastUnits, ceil_div(s.units, kMostPieces));
      s.positions = ceil_div(s.units, s.piece_units);
    }
    return s;
  }

  // Positions of a sequence on the line.
  __device__ static int length(const Sequence& s) { return s.bands * s.positions; }

  // Gives the block its part of the cluster's units.
  __device__ void divide(int unit, int end, LatentSegment* s) const {
    const int blocks = 1 << a_.cluster;
    const int each = (end - unit) >> a_.cluster, more = (end - unit) & (blocks - 1);
    s->unit = unit + rank_ * each + min(rank_, more);
    s->unit_end = s->unit + each + (rank_ < more);
    s->sharers = min(blocks, end - unit);
  }

  // Goes on by that many positions.
  __device__ void advance(int taken) {
    line_.go_on(taken);
    while (!line_.done() && line_.at() >= start_ + length(sequence_)) {
      start_ += length(sequence_);
      sequence_ = read(++index_);
    }
  }

  // Finds the sequence that the stretch begins in.
  __device__ void seek(const Sequence& own, int lane) {
    const SequencePlace place = find_sequence(
        line_.at(), a_.sequences, lane, [&](int i) { return length(i < kLanes ? own : read(i)); });
    index_ = place.index;
    start_ = place.start;
    sequence_ = index_ < kLanes ? broadcast(own, index_) : read(index_);
  }
  __device__ static Sequence broadcast(const Sequence& own, int lane) {
    const auto get = [lane](int x) { return __shfl_sync(0xffffffffu, x, lane); };
    return {get(own.first_query), get(own.queries),     get(own.keys),     get(own.units),
            get(own.bands),       get(own.piece_units), get(own.positions)};
  }

  const LatentDecode& a_;
  const Walkers walkers_;  // those abreast, with their clusters, count as one
  int member_, rank_;      // of those abreast, and in the cluster
  Line line_;
  int index_, start_;  // of the sequence at hand; where it begins on the line
  Sequence sequence_;
  int band_at_, position_, positions_;  // of the segment that came last
};

}  // namespace mainboard::cuda
