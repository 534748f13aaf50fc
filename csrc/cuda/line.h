// What the schedules of decode and of latent decode share: all tiles' positions in a row make a
// line, of which each walker (a block, or some that walk together) takes an equal stretch, so that
// all end together. A tile that is cut has a piece in each stretch that it touches.
#pragma once

#include "csrc/cuda/decode.h"

namespace mainboard::cuda {

// Of numbers that are not negative. A division takes about 80 cycles, and all that there are before
// a call's first copies it waits for: hence whatever below avoids one.
__device__ inline int quotient(int a, int b) {
  return static_cast<int>(static_cast<unsigned>(a) / static_cast<unsigned>(b));
}
__device__ inline int ceil_div(int a, int b) { return quotient(a + b - 1, b); }

__device__ inline int warp_sum(int x) { return __reduce_add_sync(0xffffffffu, x); }

__device__ inline int inclusive_sum(int x, int lane) {
  for (int step = 1; step < kLanes; step *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, x, step);
    if (lane >= step) x += other;
  }
  return x;
}

// Piece `piece` of the `pieces` of a tile. The first has its result in slot `first_slot`, the
// others from `next_slot` on. Each slot has a counter, for pieces that are joined there.
struct Pieces {
  int pieces, piece, first_slot, next_slot, counter;

  __device__ int slot(int i) const { return i == 0 ? first_slot : next_slot + i - 1; }

  // Those of a tile that begins at `tile_at` on the line and has a piece in each of `n` positions.
  __device__ static Pieces fixed(int tile_at, int position, int n) {
    return {n, position, tile_at, tile_at + 1, tile_at};
  }
};

// How many walkers there are, and which of them this one is.
struct Walkers {
  int count, own;
};

// How the line is shared out, and one walker's stretch of it.
class Line {
 public:
  // Shares of as many positions each.
  __device__ void share_alike(int positions) {
    share_ = positions;
    larger_ = 0;
  }
  // Equal shares of `total` positions, but not less than `least`. Where all tiles are `even` long
  // (else 0), shares end where tiles do if each is longer by less than `cheap` then: a tile that is
  // cut costs more.
  __device__ void share_out(Walkers walkers, int total, int even, int cheap, int least = 0) {
    share_equally(walkers, total);
    if (share_ < least) share_alike(least);
    if (even > 0) end_with_tiles(even, cheap);
  }
  __device__ void share_equally(Walkers walkers, int total) {
    share_ = quotient(total, walkers.count);
    larger_ = total - share_ * walkers.count;
  }
  __device__ void end_with_tiles(int even, int cheap) {
    const int needed = largest_share();
    const bool several = needed >= even;  // tiles to a share
    const int shares = several ? 1 : quotient(even, needed);
    const int whole = several ? ceil_div(needed, even) * even : ceil_div(even, shares);
    if (whole - share_ >= cheap) return;
    if (several || whole * shares == even || even % whole == 0) share_alike(whole);
  }
  __device__ int largest_share() const { return share_ + (larger_ > 0); }
  // Goes to the walker's own share of `total` positions.
  __device__ void begin(Walkers walkers, int total) {
    at_ = min(total, start_of(walkers));
    end_ = min(total, at_ + share_ + (walkers.own < larger_));
  }

  __device__ bool done() const { return at_ >= end_; }
  __device__ int at() const { return at_; }
  // Positions that are left of a tile's, of which the walker has come to `position` of `n`.
  __device__ int left(int position, int n) const { return min(n - position, end_ - at_); }
  __device__ void go_on(int positions) { at_ += positions; }

  // The walker's piece of a tile of `n` positions that begins at `tile_at`.
  __device__ Pieces pieces(Walkers walkers, int tile_at, int n) const {
    const int first = walker_at(walkers, tile_at);
    return {walker_at(walkers, tile_at + n - 1) - first + 1, walkers.own - first,
            walkers.count + first, first + 1,
            2 * walkers.count + first};  // counters lie behind those of the slots
  }

 private:
  // The walker whose stretch has a position.
  __device__ int walker_at(Walkers walkers, int position) const {
    if (position >= start_of(walkers) && position < end_) return walkers.own;
    const int of_larger = larger_ * (share_ + 1);
    const bool larger = position < of_larger;
    return (larger ? 0 : larger_) +
           quotient(larger ? position : position - of_larger, share_ + larger);
  }
  __device__ int start_of(Walkers walkers) const {
    return walkers.own * share_ + min(walkers.own, larger_);
  }

  int share_, larger_;  // positions of a walker; the first `larger_` have one more
  int at_, end_;
};

// A sequence, and where it begins on the line.
struct SequencePlace {
  int index, start;
};

// Finds the sequence that a position is in, one for each lane at a time; `length(i)` is how many
// positions sequence `i` has.
template <class Length>
__device__ SequencePlace find_sequence(int at, int sequences, int lane, Length length) {
  SequencePlace place = {0, 0};
#pragma unroll 1
  for (; place.index < sequences; place.index += kLanes) {
    const int i = place.index + lane;
    const int here = i < sequences ? length(i) : 0;
    const int sum = inclusive_sum(here, lane);
    const unsigned past = __ballot_sync(0xffffffffu, place.start + sum > at);
    if (past != 0) {
      const int found = __ffs(static_cast<int>(past)) - 1;
      place.start += __shfl_sync(0xffffffffu, sum - here, found);
      place.index += found;
      return place;
    }
    place.start += __shfl_sync(0xffffffffu, sum, kLanes - 1);
  }
  return place;  // the lengths were not what the position came from
}

}  // namespace mainboard::cuda
