// How the blocks of a cluster join their parts of a tile: each has an equal number of the tile's
// rows to join, of which the others send it what they have. It comes to where the keys were: no
// block sends before all are done with theirs, and none copies keys before it has read what came.
#pragma once

#include "csrc/cuda/latent_shape.h"

namespace mainboard::cuda {

// Four columns of a row: sums, and what they are relative to and are to be divided by.
struct LatentQuad {
  float4 sums = {};
  float2 statistics = {-INFINITY, 0.0f};

  template <int n>
  __device__ void add(const LatentQuad (&others)[n]) {
    float reference = statistics.x;
#pragma unroll
    for (const LatentQuad& x : others) reference = fmaxf(reference, x.statistics.x);
    if (reference == -INFINITY) return;
    scale(exp2_approx(statistics.x - reference));
    statistics.x = reference;
#pragma unroll
    for (LatentQuad x : others) {
      x.scale(exp2_approx(x.statistics.x - reference));
      statistics.y += x.statistics.y;
      sums.x += x.sums.x;
      sums.y += x.sums.y;
      sums.z += x.sums.z;
      sums.w += x.sums.w;
    }
  }

 private:
  __device__ void scale(float factor) {
    statistics.y *= factor;
    sums.x *= factor;
    sums.y *= factor;
    sums.z *= factor;
    sums.w *= factor;
  }
};

// The rows of a tile that a block joins: all, or in a cluster its part.
struct LatentRows {
  int first, count;

  __device__ static int rank(const LatentDecode& a) {
    return static_cast<int>(blockIdx.x) & ((1 << a.cluster) - 1);
  }
  __device__ static int all(const LatentDecode& a, const LatentSegment& s) {
    return min(kLatentRows, s.queries * static_cast<int>(a.heads.value) - s.row);
  }
  __device__ static int of_each(const LatentDecode& a, const LatentSegment& s) {
    return (all(a, s) + (1 << a.cluster) - 1) >> a.cluster;
  }
  __device__ LatentRows(const LatentDecode& a, const LatentSegment& s)
      : first(rank(a) * of_each(a, s)), count(max(0, min(of_each(a, s), all(a, s) - first))) {}
};

template <class S>
class LatentInbox {
 public:
  __device__ LatentInbox(const LatentDecode& a, uint32_t shared, typename S::Control& control,
                         const LatentSegment& s, int number)
      : control_(control),
        inbox_(shared + S::keys_at),
        cluster_(a.cluster),
        rank_(LatentRows::rank(a)),
        each_(LatentRows::of_each(a, s)),
        all_(LatentRows::all(a, s)),
        parity_(number % 2) {}

  // Tells the cluster that the block's keys are done with, and waits for all to say so. `speaks`
  // in one thread, after a barrier of all summing threads.
  __device__ void open(bool speaks, int rows, int sharers) const {
    if (speaks) {
      barrier_arrive_expecting(&control_.inbox_full, rows * sharers * kRowBytes);
      for (int i = 0; i < 1 << cluster_; ++i) barrier_arrive_in_block(&control_.peers_ready, i);
    }
    barrier_wait(&control_.peers_ready, parity_);
  }

  // Where the block's part of a row of the tile goes: addresses in the block that joins it.
  struct Way {
    uint32_t sums, statistics, full;
  };
  __device__ Way way(int row) const {
    const int block = row / each_, place = rank_ * each_ + row - block * each_;
    return {address_in_block(sums_at(place), block), address_in_block(statistics_at(place), block),
            address_in_block(shared_address(&control_.inbox_full), block)};
  }
  __device__ bool has(int row) const { return row < all_; }

  // Waits until all of the block's rows have come.
  __device__ void wait() const { barrier_wait(&control_.inbox_full, parity_); }

  // What block `from` sent of the block's own row.
  __device__ LatentQuad read(int from, int row, int quad) const {
    LatentQuad x;
    const uint4 sums = load_shared(sums_at(from * each_ + row) + quad * 16);
    x.sums = {__uint_as_float(sums.x), __uint_as_float(sums.y), __uint_as_float(sums.z),
              __uint_as_float(sums.w)};
    x.statistics = load_pair(statistics_at(from * each_ + row));
    return x;
  }

 private:
  static constexpr int kSumsBytes = S::dim * static_cast<int>(sizeof(float));
  static constexpr int kRowBytes = kSumsBytes + static_cast<int>(sizeof(float2));
  // An equal part of each is never more than there is room for.
  static_assert(kLatentRows % (1 << kMostLatentCluster) == 0);
  static_assert(kLatentRows * kRowBytes <= S::slots * S::slot_bytes);

  __device__ uint32_t sums_at(int place) const { return inbox_ + place * kSumsBytes; }
  __device__ uint32_t statistics_at(int place) const {
    return inbox_ + kLatentRows * kSumsBytes + place * static_cast<int>(sizeof(float2));
  }

  typename S::Control& control_;
  const uint32_t inbox_;
  const int cluster_, rank_, each_, all_, parity_;
};

}  // namespace mainboard::cuda
