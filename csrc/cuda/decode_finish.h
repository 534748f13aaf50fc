// The end of a segment: the warps' partial results become the block's, and the block's the tile's.
//
// A tile in one piece is written out. The pieces of a cut tile go to the workspace, and whichever
// block is last to arrive joins them, always in the order of the keys: the same bits every time.
#pragma once

#include "csrc/cuda/decode_partial.h"
#include "csrc/cuda/decode_tile.h"
#include "csrc/cuda/hopper.h"

namespace mainboard::cuda {

// What the block's threads share apart from the ring. Who joins pieces is the block, or each warp
// that has heads of its own.
template <class S>
struct Shared {
  float2 warp_statistics[S::warps][kTileRows];  // maximum and total
  bool is_last[S::joiners];
  uint64_t inbox_full;  // counts the bytes that the cluster's other blocks sent
};

template <class S>
class Finish {
 public:
  static constexpr int kQuads = S::dim / 4;  // of a row's columns
  static constexpr int kTeams = S::warps / S::team;
  static constexpr int kThreads = S::threads / S::joiners;
  static constexpr int kHeads = S::heads / S::joiners;
  static constexpr int kGroupPieces = 16;  // of a tile in very many pieces, joined first

  __device__ Finish(const Decode& a, Shared<S>& shared, int thread)
      : a_(a),
        shared_(shared),
        warp_(thread / 32),
        joiner_(S::joiners == 1 ? 0 : thread / 32),
        thread_(thread % kThreads) {}

  // A barrier of the threads that join pieces together.
  __device__ static void barrier() {
    if constexpr (S::joiners == 1) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }

  // Keeps a warp's results where its last keys were: `stages` is that stage of warp 0. Every
  // reader of those must be done.
  __device__ void keep(const Tile<S>& tile, char* stages) {
    stages_ = stages;
    const int warp = warp_, lane = thread_ % 32;
    float* rows = warp_sums(warp);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = lane / 4 + 8 * r;
      const float total = quad_sum(tile.total[r]);
      if (lane % 4 == 0) shared_.warp_statistics[warp][row] = {tile.maximum[r], total};
      float* to = rows + row * S::sums_pitch;
#pragma unroll
      for (int step = 0; step < S::sums_dim / 16; ++step) {
        const auto& even = tile.sums[2 * step];
        const auto& odd = tile.sums[2 * step + 1];
        if constexpr (S::fp8) {
          *reinterpret_cast<float4*>(to + step * 16 + lane % 4 * 4) = {
              even[2 * r], odd[2 * r], even[2 * r + 1], odd[2 * r + 1]};
        } else {
          float* at = to + step * 16 + lane % 4 * 2;
          *reinterpret_cast<float2*>(at) = {even[2 * r], even[2 * r + 1]};
          *reinterpret_cast<float2*>(at + 8) = {odd[2 * r], odd[2 * r + 1]};
        }
      }
    }
  }

  // Joins what the warps kept. All joining threads call it, after a barrier.
  __device__ void join_warps(const Segment& s) {
    const int rows = used_rows(s);
    for (int i = thread_; i < rows * kQuads; i += kThreads) {
      const Partial own = partial_of_warps(s, i);
      if (s.pieces == 1) {
        write(s, i, own);
      } else {
        keep_piece(slot(s, s.piece), i, own, 0);
      }
    }
  }

  // Prepares for others' pieces, when the kernel begins.
  __device__ void expect_cluster() {
    if (a_.cluster == 0 || thread_ != 0) return;
    barrier_init(&shared_.inbox_full, 1);
    barrier_init_fence();
  }

  // Joins the pieces that the blocks of a cluster have: each block gets an equal part of the tile
  // from all of them. All threads of the cluster call it, when nothing is on its way to the rings.
  __device__ void join_cluster(const Tile<S>& tile, const Segment& s, char* ring) {
    const int items = used_rows(s) * kQuads, each = (items + (1 << a_.cluster) - 1) >> a_.cluster;
    const int begin = static_cast<int>(rank_in_cluster()) * each, own = min(each, items - begin);
    constexpr int kItemBytes = sizeof(float4) + sizeof(float2);
    char* const sums = ring + S::stage_bytes;
    char* const statistics = sums + (each << a_.cluster) * sizeof(float4);
    if (thread_ == 0 && own > 0) {
      barrier_arrive_expecting(&shared_.inbox_full, own * s.pieces * kItemBytes);
    }
    wait_for_copies<0>();
    cluster_arrive();  // others may write to this warp's stages, except the first
    keep(tile, ring);
    __syncthreads();
    cluster_wait();
    if (s.piece < s.pieces) {
      send_items(s, items, each, shared_address(sums), shared_address(statistics));
    }
    if (own <= 0) return;
    barrier_wait(&shared_.inbox_full, 0);
    for (int i = thread_; i < own; i += kThreads) {
      write(s, begin + i,
            join_row(reinterpret_cast<const float2*>(statistics) + i, each,
                     reinterpret_cast<const float4*>(sums) + i, each, s.pieces));
    }
  }

  // Counts the block's piece in, after a barrier. What that tells is waited for in `settle`, so
  // that the block can go on meanwhile.
  __device__ void arrive(const Segment& s) {
    if (thread_ == 0) {
      before_ = count_in(s.pieces > kManyPieces ? slot(s, group_of(s)) : counter(s));
    }
  }

  // If the block was the last to come, joins the pieces. Very many are joined in groups first,
  // which different blocks do at the same time. All threads call it, before the next `arrive`.
  // When the block has nothing else to do the pieces go through the `ring`, all in flight at once.
  template <bool last>
  __device__ void settle(const Segment& s, char* ring) {
    bool grouped = s.pieces > kManyPieces;
    int first = grouped ? group_of(s) : 0, step = 1;
    int count = grouped ? min(kGroupPieces, s.pieces - first) : s.pieces;
    while (is_last(grouped ? slot(s, first) : counter(s), count)) {
      if constexpr (last) {
        gather_through(ring, s, first, step, count, !grouped);
      } else {
        gather(s, first, step, count, !grouped);
      }
      if (!grouped) return;
      barrier();
      if (thread_ == 0) before_ = count_in(counter(s));
      grouped = false;
      first = 0;
      step = kGroupPieces;
      count = ceil_div(s.pieces, step);
    }
  }

 private:
  // Sends this block's part of every item to the block of the cluster that joins it.
  __device__ void send_items(const Segment& s, int items, int each, uint32_t sums,
                             uint32_t statistics) const {
    const uint32_t full = shared_address(&shared_.inbox_full);
    for (int i = thread_; i < items; i += kThreads) {
      const Partial own = partial_of_warps(s, i);
      const int to = i / each, at = s.piece * each + i - to * each;
      const uint32_t there = address_in_block(full, to);
      send(address_in_block(sums + at * sizeof(float4), to), own.sums, there);
      send(address_in_block(statistics + at * sizeof(float2), to), float2{own.most, own.total},
           there);
    }
  }

  __device__ float* warp_sums(int warp) const {
    return reinterpret_cast<float*>(stages_ + warp / S::columns * (S::stages * S::stage_bytes) +
                                    warp % S::columns * S::sums_bytes);
  }

  // Where a piece is kept, and where a tile's are counted.
  __device__ int slot(const Segment& s, int piece) const {
    return s.slot(piece) * S::joiners + joiner_;
  }
  __device__ int counter(const Segment& s) const { return s.counter * S::joiners + joiner_; }

  __device__ int used_rows(const Segment& s) const { return kHeads * rows_of_head(s); }

  __device__ int rows_of_head(const Segment& s) const {
    return min(S::head_rows, s.sequence.queries * static_cast<int>(a_.group.value) - s.row);
  }

  // Where the tile has the `i`th row in use.
  __device__ int row_in_tile(const Segment& s, int i) const {
    const int first = joiner_ * (S::rows / S::joiners);
    if constexpr (kHeads == 1) return first + i;
    const int rows = rows_of_head(s), head = quotient(i, rows);
    return first + i + head * (S::head_rows - rows);
  }

  __device__ static int group_of(const Segment& s) { return s.piece / kGroupPieces * kGroupPieces; }

  // What the warps of all groups have together of the block's item `i`, a row's four columns.
  __device__ Partial partial_of_warps(const Segment& s, int i) const {
    constexpr int kWarpQuads = S::sums_dim / 4;
    const int row = row_in_tile(s, i / kQuads), quad = i % kWarpQuads;
    const int in_team = row / kTileRows * S::columns + i % kQuads / kWarpQuads;
    const int in_tile = row % kTileRows;
    float2 own[kTeams];
    float4 x[kTeams];
#pragma unroll
    for (int t = 0; t < kTeams; ++t) {
      const int warp = t * S::team + in_team;
      own[t] = shared_.warp_statistics[warp][in_tile];
      x[t] = *reinterpret_cast<const float4*>(warp_sums(warp) + in_tile * S::sums_pitch + 4 * quad);
    }
    Partial joined;
    joined.join(own, x);
    return joined;
  }

  // Thread 0 speaks for the block: the barrier before ordered the other threads' writes.
  __device__ int count_in(int counter) { return add_one_in_order(a_.workspace.counters + counter); }

  // Whether this block was the last of `count`. All threads call it.
  __device__ bool is_last(int counter, int count) {
    if (thread_ == 0) {
      shared_.is_last[joiner_] = before_ == count - 1;
      if (shared_.is_last[joiner_]) a_.workspace.counters[counter] = 0;  // ready for the next call
    }
    barrier();
    return shared_.is_last[joiner_];
  }

  // Joins a row's four columns of `count` pieces, some apart. The same sums in the same order,
  // whoever joins: it must not show which block came last. Few instructions, since they are read
  // from memory too, and run once.
  template <class Statistics, class Sums>
  __device__ static Partial join_row(Statistics statistics, int apart, Sums sums, int sums_apart,
                                     int count) {
    Partial joined;
#pragma unroll 4
    for (int j = 0; j < count; ++j) joined.most = fmaxf(joined.most, statistics[j * apart].x);
    if (joined.most == -INFINITY) return joined;
#pragma unroll 4
    for (int j = 0; j < count; ++j) {
      const float2 own = statistics[j * apart];
      joined.add(sums[j * sums_apart], own.y, exp2_approx(own.x - joined.most));
    }
    return joined;
  }

  // Where the pieces `first`, `first + step`, .. have theirs.
  struct Places {
    const Finish& finish;
    const Segment& s;
    const Workspace& w;
    int first, step, slot_rows;

    __device__ int row(int j) const { return finish.slot(s, first + j * step) * slot_rows; }
    // Joined statistics lie behind those of the pieces.
    __device__ const float2* statistics(int j) const {
      return w.statistics + (step > 1 ? w.rows : 0) + row(j);
    }
    __device__ const float4* sums(int j) const {
      return reinterpret_cast<const float4*>(w.sums) + int64_t{row(j)} * kQuads;
    }
  };

  // Joins `count` pieces from `first` on, `step` apart, and writes the tile, or keeps their sums
  // in the slot of the first.
  __device__ void gather(const Segment& s, int first, int step, int count, bool whole) {
    const Places places{*this, s, a_.workspace, first, step, a_.slot_rows};
    const int items = used_rows(s) * kQuads;
    for (int i = thread_; i < items; i += kThreads) {
      Partial joined;
#pragma unroll 4
      for (int j = 0; j < count; ++j) {
        joined.most = fmaxf(joined.most, __ldcg(places.statistics(j) + i / kQuads).x);
      }
#pragma unroll 4
      for (int j = 0; j < count && joined.most > -INFINITY; ++j) {
        const float2 own = __ldcg(places.statistics(j) + i / kQuads);
        joined.add(__ldcg(places.sums(j) + i), own.y, exp2_approx(own.x - joined.most));
      }
      put(s, first, i, joined, whole);
    }
  }

  // What the pieces of two rows weigh, by one warp, and with it their totals.
  struct Weights {
    static constexpr int kRows = 2, kOfLane = kManyPieces / 32;  // pieces
    float2 own[kRows][kOfLane];

    __device__ Weights(const Places& places, int row, int rows, int count, int lane) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int k = 0; k < kOfLane; ++k) {
          const int j = lane + 32 * k;
          const bool used = j < count && row + r < rows;
          own[r][k] = used ? __ldcg(places.statistics(j) + row + r) : float2{-INFINITY, 0.0f};
        }
      }
    }
    __device__ void keep(int row, int rows, int count, int lane, float* most,
                         float2* weights) const {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float largest = own[r][0].x;
#pragma unroll
        for (int k = 1; k < kOfLane; ++k) largest = fmaxf(largest, own[r][k].x);
        largest = warp_max(largest);
        if (row + r >= rows) return;
        if (lane == 0) most[row + r] = largest;
#pragma unroll
        for (int k = 0; k < kOfLane; ++k) {
          const int j = lane + 32 * k;
          if (j >= count) continue;
          weights[j * rows + row + r] = {
              largest == -INFINITY ? 0.0f : exp2_approx(own[r][k].x - largest), own[r][k].y};
        }
      }
    }
  };

  // The same through shared memory.
  __device__ void gather_through(char* ring, const Segment& s, int first, int step, int count,
                                 bool whole) {
    const Places places{*this, s, a_.workspace, first, step, a_.slot_rows};
    const int rows = used_rows(s), items = rows * kQuads;
    constexpr int kRingBytes = S::ring_bytes / S::joiners;
    constexpr int kSumBytes = sizeof(float4);
    ring += joiner_ * (S::parts / S::joiners * S::stages * S::stage_bytes);
    float* const most = reinterpret_cast<float*>(ring);  // of each row
    float2* const weights = reinterpret_cast<float2*>(most + S::rows);
    const int used = S::rows * static_cast<int>(sizeof(float)) +
                     (count * rows * static_cast<int>(sizeof(float2)) + 15) / 16 * 16;
    float4* const sums = reinterpret_cast<float4*>(ring + used);
    int at_once = items;
    while (used + at_once * count * kSumBytes > kRingBytes) at_once = (at_once + 1) / 2;
    constexpr int kAtOnceRows = kThreads / 32 * Weights::kRows;
    const int lane = thread_ % 32, warp_row = thread_ / 32 * Weights::kRows;
    const Weights first_rows(places, warp_row, rows, count, lane);
    for (int begin = 0; begin < items; begin += at_once) {
      const int here = min(at_once, items - begin);
      for (int i = thread_; i < here; i += kThreads) {
#pragma unroll 4
        for (int j = 0; j < count; ++j) {
          copy_async(shared_address(sums + j * here + i), places.sums(j) + begin + i);
        }
      }
      commit_copies();
      if (begin == 0) {
        first_rows.keep(warp_row, rows, count, lane, most, weights);
#pragma unroll 1
        for (int row = warp_row + kAtOnceRows; row < rows; row += kAtOnceRows) {
          Weights(places, row, rows, count, lane).keep(row, rows, count, lane, most, weights);
        }
      }
      wait_for_copies<0>();
      barrier();
      for (int i = thread_; i < here; i += kThreads) {
        const int row = (begin + i) / kQuads;
        Partial joined;
        joined.most = most[row];
#pragma unroll 8
        for (int j = 0; j < count; ++j) {
          const float2 own = weights[j * rows + row];
          joined.add(sums[j * here + i], own.y, own.x);
        }
        put(s, first, begin + i, joined, whole);
      }
      barrier();
    }
  }

  // A joined item of the tile, or of a group of its pieces.
  __device__ void put(const Segment& s, int first, int i, const Partial& joined, bool whole) {
    if (whole) {
      write(s, i, joined);
    } else {
      keep_piece(slot(s, first), i, joined, a_.workspace.rows);
    }
  }

  // Keeps item `i` in a slot, its statistics `behind` those of the pieces.
  __device__ void keep_piece(int slot, int i, const Partial& own, int64_t behind) {
    const int row = i / kQuads, quad = i % kQuads;
    const int64_t at = int64_t{slot} * a_.slot_rows + row;
    __stcg(reinterpret_cast<float4*>(a_.workspace.sums + at * S::dim) + quad, own.sums);
    if (quad == 0) __stcg(a_.workspace.statistics + behind + at, {own.most, own.total});
  }

  // Item `i` of the output.
  __device__ void write(const Segment& s, int i, Partial x) {
    using T = typename S::T;
    const int row = i / kQuads, quad = i % kQuads;
    const RowPlace<S> place(a_, s, s.row + row_in_tile(s, row));
    if (a_.sinks) {
      const float2 sink[1] = {{a_.sinks[place.head] * kLog2E, 1.0f}};
      const float4 no_value[1] = {};
      x.join(sink, no_value);
    }
    const float factor = a_.v_scale ? a_.v_scale[place.kv_head * a_.v_scale_stride] : 1.0f;
    const float scale = x.total > 0.0f ? factor / x.total : 0.0f;
    const uint2 packed = {pack<T>(x.sums.x * scale, x.sums.y * scale),
                          pack<T>(x.sums.z * scale, x.sums.w * scale)};
    T* to = static_cast<T*>(a_.out) + place.token * a_.out_token + place.head * a_.out_head;
    *(reinterpret_cast<uint2*>(to) + quad) = packed;
    if (a_.lse && quad == 0) {
      a_.lse[place.head * a_.lse_head + place.token] =
          x.total > 0.0f ? (x.most + __log2f(x.total)) * kLn2 : -INFINITY;
    }
  }

  const Decode& a_;
  Shared<S>& shared_;
  const int warp_, joiner_, thread_;  // the thread is of the joiner's
  char* stages_ = nullptr;
  int before_ = 0;  // thread 0: what it found when it counted the block in
};

}  // namespace mainboard::cuda
