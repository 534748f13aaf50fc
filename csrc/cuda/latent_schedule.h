// Who does what in latent decode, decided on the device from the lengths; see decode_schedule.h,
// whose line of work this is too.
//
// Here all tiles of a sequence read the same keys. So `abreast` neighbouring blocks walk one line
// together, each for its own of as many tiles, and memory is read once for all of them. A tile is
// 64 rows of queries x heads; a band is `abreast` tiles.
#pragma once

#include "csrc/cuda/decode_schedule.h"
#include "csrc/cuda/latent.h"

namespace mainboard::cuda {

// What one block does next: units [unit, unit_end) of one tile.
struct LatentSegment {
  int index;  // of the sequence
  int first_query, queries, keys;
  int row;  // first of the tile
  int unit, unit_end;
  // Piece `piece` of `pieces`, or no segment at all if `pieces` is 0. The first has its result in
  // slot `first_slot`, the others from `next_slot` on, `slot_step` apart. Each slot has a counter,
  // for pieces that are joined there.
  int pieces, piece, first_slot, next_slot, slot_step, counter;

  __device__ int slot(int i) const { return i == 0 ? first_slot : next_slot + (i - 1) * slot_step; }
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
      : a_(a),
        blocks_(static_cast<int>(gridDim.x) / a.abreast),
        block_(static_cast<int>(blockIdx.x) / a.abreast),
        member_(static_cast<int>(blockIdx.x) - block_ * a.abreast) {
    int mine = 0, bands = 0, longest = 0;
    for (int i = lane; i < a.sequences; i += kLanes) {
      const Sequence s = read(i);
      mine += s.bands * s.positions;
      bands += s.bands;
      longest = max(longest, s.bands > 0 ? s.positions : 0);
    }
    const int total = warp_sum(mine);
    longest = __reduce_max_sync(0xffffffffu, longest);
    share_out(total, warp_sum(bands) * longest == total ? longest : 0);
    at_ = min(total, block_ * share_ + min(block_, larger_));
    end_ = min(total, at_ + share_ + (block_ < larger_));
    if (at_ < end_) seek(lane);
  }

  // The next segment, or one of no pieces at the end.
  __device__ LatentSegment next() {
    LatentSegment s;
    s.pieces = 0;
    while (at_ < end_ && s.pieces == 0) {
      if (first_row() < sequence_.queries * static_cast<int>(a_.heads.value)) s = segment();
      advance();
    }
    return s;
  }

 private:
  static constexpr int kCutCost = 6;     // positions: about what it costs to cut a tile
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
    s.bands = ceil_div(s.queries * static_cast<int>(a_.heads.value), kLatentRows * a_.abreast);
    constexpr int kLeastUnits = 1024 / unit_keys;
    s.piece_units = a_.fixed_pieces ? max(kLeastUnits, ceil_div(s.units, kMostPieces)) : 1;
    s.positions = ceil_div(s.units, s.piece_units);
    return s;
  }

  __device__ int band() const { return (at_ - start_) / sequence_.positions; }
  __device__ int first_row() const { return (band() * a_.abreast + member_) * kLatentRows; }

  __device__ LatentSegment segment() const {
    const int n = sequence_.positions, position = at_ - start_ - band() * n;
    LatentSegment s;
    s.index = index_;
    s.first_query = sequence_.first_query;
    s.queries = sequence_.queries;
    s.keys = sequence_.keys;
    s.row = first_row();
    s.unit = position * sequence_.piece_units;
    s.unit_end = min(sequence_.units, (position + taken()) * sequence_.piece_units);
    const int band_at = at_ - position;
    int first_slot, next_slot, counter;
    if (a_.fixed_pieces) {
      s.pieces = n;
      s.piece = position;
      first_slot = counter = band_at;
      next_slot = band_at + 1;
    } else {
      const int first = block_at(band_at);
      s.pieces = block_at(band_at + n - 1) - first + 1;
      s.piece = block_ - first;
      first_slot = blocks_ + first;
      next_slot = first + 1;
      counter = 2 * blocks_ + first;  // behind those of the slots
    }
    s.slot_step = a_.abreast;
    s.first_slot = first_slot * a_.abreast + member_;
    s.next_slot = next_slot * a_.abreast + member_;
    s.counter = counter * a_.abreast + member_;
    return s;
  }

  __device__ void advance() {
    at_ += taken();
    while (at_ < end_ && at_ >= start_ + sequence_.bands * sequence_.positions) {
      start_ += sequence_.bands * sequence_.positions;
      sequence_ = read(++index_);
    }
  }

  // Equal shares of the line; where all bands are `even` long, shares that end where bands do, if
  // that costs less than cutting them.
  __device__ void share_out(int total, int even) {
    share_ = total / blocks_;
    larger_ = total - share_ * blocks_;
    if (!a_.fixed_pieces && share_ < kLeastShare) {
      share_ = kLeastShare;
      larger_ = 0;
    }
    if (even == 0) return;
    const int needed = share_ + (larger_ > 0);
    const int whole =
        needed >= even ? ceil_div(needed, even) * even : ceil_div(even, even / needed);
    if (whole - share_ < kCutCost && even % min(whole, even) == 0) {
      share_ = whole;
      larger_ = 0;
    }
  }

  // The block (of as many abreast) whose stretch has a position.
  __device__ int block_at(int position) const {
    const int of_larger = larger_ * (share_ + 1);
    return position < of_larger ? position / (share_ + 1)
                                : larger_ + (position - of_larger) / share_;
  }

  // Positions that the segment at hand covers.
  __device__ int taken() const {
    const int n = sequence_.positions;
    return a_.fixed_pieces ? 1 : min(n - (at_ - start_) % n, end_ - at_);
  }

  // Finds the sequence that `at_` is in, one for each lane at a time.
  __device__ void seek(int lane) {
    start_ = 0;
    for (index_ = 0;; index_ += kLanes) {
      const int i = index_ + lane;
      int length = 0;
      if (i < a_.sequences) {
        const Sequence s = read(i);
        length = s.bands * s.positions;
      }
      const int sum = inclusive_sum(length, lane);
      const unsigned past = __ballot_sync(0xffffffffu, start_ + sum > at_);
      if (past != 0) {
        const int found = __ffs(static_cast<int>(past)) - 1;
        start_ += __shfl_sync(0xffffffffu, sum - length, found);
        index_ += found;
        break;
      }
      start_ += __shfl_sync(0xffffffffu, sum, kLanes - 1);
    }
    sequence_ = read(index_);
  }

  const LatentDecode& a_;
  const int blocks_, block_, member_;  // counting those abreast as one; this one's place among them
  int share_, larger_;  // positions of a block; the first `larger_` blocks have one more
  int at_, end_;
  int index_, start_;  // of the sequence at hand; where it begins on the line
  Sequence sequence_;
};

}  // namespace mainboard::cuda
