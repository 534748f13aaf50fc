// Who does what in latent decode, decided on the device from the lengths; see line.h and
// decode_schedule.h.
//
// Here all tiles of a sequence read the same keys. So `abreast` neighbouring blocks walk one line
// together, each for its own of as many tiles, and memory is read once for all of them. A tile is
// 64 rows of queries x heads; a band is `abreast` tiles.
#pragma once

#include "csrc/cuda/latent.h"
#include "csrc/cuda/line.h"

namespace mainboard::cuda {

// What one block does next: units [unit, unit_end) of one tile, or nothing more if `pieces` is 0.
struct LatentSegment : Pieces {
  int index;  // of the sequence
  int first_query, queries, keys;
  int row;  // first of the tile
  int unit, unit_end;
  int abreast, member;  // blocks that walk together, and which of them this one is

  // The slot of a piece of this tile, and the counter of the tile.
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
      : a_(a), member_(static_cast<int>(blockIdx.x) % a.abreast) {
    int mine = 0, bands = 0, longest = 0;
    for (int i = lane; i < a.sequences; i += kLanes) {
      const Sequence s = read(i);
      mine += length(s);
      bands += s.bands;
      longest = max(longest, s.bands > 0 ? s.positions : 0);
    }
    const int total = warp_sum(mine);
    longest = __reduce_max_sync(0xffffffffu, longest);
    const int even = warp_sum(bands) * longest == total ? longest : 0;
    line_.share_out(walkers(), total, even, kCutCost, a.fixed_pieces ? 0 : kLeastShare);
    line_.begin(walkers(), total);
    if (!line_.done()) seek(lane);
  }

  // The next segment, or one of no pieces at the end.
  __device__ LatentSegment next() {
    LatentSegment s;
    s.pieces = 0;
    while (!line_.done() && s.pieces == 0) {
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

  // Those abreast count as one.
  __device__ Walkers walkers() const {
    return {static_cast<int>(gridDim.x) / a_.abreast, static_cast<int>(blockIdx.x) / a_.abreast};
  }

  // Positions of a sequence on the line.
  __device__ static int length(const Sequence& s) { return s.bands * s.positions; }

  __device__ int band() const { return (line_.at() - start_) / sequence_.positions; }
  __device__ int first_row() const { return (band() * a_.abreast + member_) * kLatentRows; }

  __device__ LatentSegment segment() const {
    const int n = sequence_.positions, position = line_.at() - start_ - band() * n;
    const int band_at = line_.at() - position;
    LatentSegment s;
    static_cast<Pieces&>(s) =
        a_.fixed_pieces ? Pieces::fixed(band_at, position, n) : line_.pieces(walkers(), band_at, n);
    s.index = index_;
    s.first_query = sequence_.first_query;
    s.queries = sequence_.queries;
    s.keys = sequence_.keys;
    s.row = first_row();
    s.abreast = a_.abreast;
    s.member = member_;
    s.unit = position * sequence_.piece_units;
    s.unit_end = min(sequence_.units, (position + taken()) * sequence_.piece_units);
    return s;
  }

  __device__ void advance() {
    line_.go_on(taken());
    while (!line_.done() && line_.at() >= start_ + length(sequence_)) {
      start_ += length(sequence_);
      sequence_ = read(++index_);
    }
  }

  // Positions that the segment at hand covers.
  __device__ int taken() const {
    const int n = sequence_.positions;
    return a_.fixed_pieces ? 1 : line_.left((line_.at() - start_) % n, n);
  }

  // Finds the sequence that the stretch begins in.
  __device__ void seek(int lane) {
    const SequencePlace place =
        find_sequence(line_.at(), a_.sequences, lane, [this](int i) { return length(read(i)); });
    index_ = place.index;
    start_ = place.start;
    sequence_ = read(index_);
  }

  const LatentDecode& a_;
  const int member_;  // of those abreast
  Line line_;
  int index_, start_;  // of the sequence at hand; where it begins on the line
  Sequence sequence_;
};

}  // namespace mainboard::cuda
