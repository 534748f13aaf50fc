// Attention over few queries for each sequence: decode, speculative decode, short chunks.
//
// A block of four or eight warps walks its stretch of the keys (decode_schedule.h). Each warp
// copies an equal part of a unit's keys; `row_tiles` warps, or twice as many with half of the
// columns each, share theirs and take 16 rows each. Others take different keys, joined at the end
// of the tile (decode_finish.h), or other heads.
#pragma once

#include "csrc/cuda/decode_finish.h"

namespace mainboard::cuda {

// The warps that share their keys wait for each other.
template <class S>
__device__ void sharing_barrier(int warp) {
  if constexpr (S::sharing == 1) {
    __syncwarp();
  } else {
    named_barrier(1 + warp / S::sharing, 32 * S::sharing);
  }
}

// Attends to all keys of a stage: its warps' parts, two blocks of keys at a time if it can.
template <class S>
__device__ void attend_to_stage(const Decode& a, Tile<S>& tile, uint32_t stage_of_warp, int key,
                                int lane) {
  // Two give the matrix unit more to do at once, where the registers allow.
  constexpr int total = S::blocks * S::row_tiles, together = total == 1 || S::dim > 128 ? 1 : 2;
  const uint32_t k_lane = chunk_offset<S>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  const uint32_t v_lane = S::tensor_bytes + chunk_offset<S>(lane % 16, lane / 16);
#pragma unroll
  for (int first = 0; first < total; first += together) {
    uint32_t k[together], v[together];
#pragma unroll
    for (int i = 0; i < together; ++i) {
      const int part = (first + i) / S::blocks, block = (first + i) % S::blocks;
      const uint32_t at =
          stage_of_warp + part * (S::stages * S::stage_bytes) + block * (kBlockKeys * S::pitch);
      k[i] = at + k_lane;
      v[i] = at + v_lane;
    }
    tile.template attend<together>(a, k, v, key + first * kBlockKeys, lane);
  }
}

template <class S>
__global__ void __launch_bounds__(S::threads, S::blocks_per_multiprocessor)
    decode(const __grid_constant__ Decode a) {
  extern __shared__ __align__(128) char ring[];
  __shared__ Shared<S> shared;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int warp = __shfl_sync(0xffffffffu, thread / 32, 0);
  const int in_team = warp % S::team;
  const int first_part = warp / S::sharing * S::row_tiles;  // that has this warp's keys

  // A call has a long way from the lengths to its first copy, and they are seldom what the grid
  // before has just written: the way is gone before that has ended, and again if they changed. Both
  // lengths and table are read again while the first keys come. What is read before may be anything
  // and must not lead outside the call's tensors. Each warp goes by itself.
  constexpr int kRing = S::stages * S::stage_bytes;
  const uint32_t ring_address = shared_address(ring);
  using Walk = Walker<S::rows, S::unit_keys>;
  constexpr int kFoundBytes = Walk::kMostFound * sizeof(Bounds);
  static_assert(S::columns * kFoundBytes <= S::stage_bytes);
  char* const own_ring = ring + warp / S::columns * kRing;
  Walk walk(a, reinterpret_cast<Bounds*>(own_ring + kRing - S::stage_bytes +
                                         warp % S::columns * kFoundBytes));
  Loader<S> loader(a, shared_address(own_ring), warp, lane);
  Tile<S> tile(ring + S::ring_bytes, in_team, lane);
  Finish<S> finish(a, shared, thread);
  if constexpr (S::joins_in_cluster) finish.expect_cluster();
  Segment segment;
  int loaded = 0;
#pragma unroll 1
  for (bool waited = !walk.may_plan_early();; waited = true) {
    if (waited) wait_for_previous_grid();
    walk.plan(lane);
    bool ready = !walk.done();
    if (ready) {
      segment = walk.segment();
      loader.place(walk, segment);
      tile.place(a, segment, lane);
      ready = waited || segment.is_within(a);
    }
    const int from = ready ? loader.begin(segment) : 0;
    if (!waited) {
      if (ready && a.cluster == 0) loader.foresee();
      wait_for_previous_grid();
    }
    let_next_grid_start();
    const Bounds bounds = Bounds::read_if_any(a, lane);
    const int now_from = ready ? loader.look_again(segment) : 0;
    if (ready) {
      tile.read();
      loaded = loader.fill();
      tile.enter(a, segment);
    }
    const bool same = now_from == from && (ready || walk.done());
    if (waited || (__all_sync(0xffffffffu, same) && walk.holds(lane, bounds))) break;
    wait_for_copies<0>();
    loaded = 0;
  }
  if (walk.done()) return;
  if (segment.piece > 0 && segment.pieces == 1) return;  // of a cluster; the first does it all
  loader.go_on();
#pragma unroll 1
  for (int i = loaded; i < S::stages - 1; ++i) loader.load(i);
  if constexpr (S::shares_queries) {
    tile.share_queries(a, segment, thread);
    __syncthreads();
  }

  Segment unsettled;
  unsettled.pieces = 0;
  for (int stage = 0;;) {
    tile.clear();
    int last = stage;
#pragma unroll 1
    for (int unit = segment.unit; unit < segment.unit_end; ++unit) {
      wait_for_copies<S::stages - 2>();
      sharing_barrier<S>(warp);
      loader.load(stage == 0 ? S::stages - 1 : stage - 1);
      const int block = segment.sequence.first_block + unit * S::unit_blocks;
      attend_to_stage(a, tile, ring_address + first_part * kRing + stage * S::stage_bytes,
                      (block + first_part / S::head_warps * S::blocks) * kBlockKeys, lane);
      last = stage;
      stage = stage + 1 == S::stages ? 0 : stage + 1;
    }
    sharing_barrier<S>(warp);
    if constexpr (S::joins_in_cluster) {
      if (walk.clustered() && segment.pieces > 1) return finish.join_cluster(tile, segment, ring);
    }
    finish.keep(tile, ring + last * S::stage_bytes);
    const Segment ended = segment;
    walk.advance();
    const bool more = !walk.done();
    if (more) {  // the queries come while the results are joined
      segment = walk.segment();
      tile.place(a, segment, lane);
      tile.read();
      tile.enter(a, segment);
    }
    finish.barrier();
    finish.join_warps(ended);
    if (S::shares_queries && more) tile.share_queries(a, segment, thread);
    if (ended.pieces > 1 && unsettled.pieces > 1) finish.template settle<false>(unsettled, ring);
    finish.barrier();
    if (ended.pieces > 1) {
      finish.arrive(ended);
      unsettled = ended;
    }
    if (!more) break;
  }
  if (unsettled.pieces > 1) finish.template settle<true>(unsettled, ring);
}

}  // namespace mainboard::cuda
