// Latent attention (MLA) over few queries: one key head of 576 columns, whose first 512 are the
// values too, so that every row is read once.
//
// A block holds 64 rows of queries x heads and two and a half units of 64 keys. One warpgroup makes
// weights of queries and keys; two sum the values, half of the columns each, which no single one
// has the registers for; three warps copy. They meet at barriers in shared memory only: so the
// matrix units have a unit's values to multiply while the next one's keys are on their way.
//
// Blocks that walk two tiles of a sequence form a pair and copy half of the keys each, to both: a
// key comes once from the second-level cache. In a call with few tiles, a cluster of blocks shares
// each (latent_inbox.h).
#pragma once

#include "csrc/cuda/latent_load.h"
#include "csrc/cuda/latent_score.h"
#include "csrc/cuda/latent_sum.h"

namespace mainboard::cuda {

template <class S>
__device__ void init_latent_barriers(typename S::Control& control, int cluster_blocks) {
  barrier_init(&control.q_full, 1);
  barrier_init(&control.q_empty, S::score_warps);
  barrier_init(&control.scored, S::score_warps);
  constexpr int kReaders = S::paired ? 2 : 1;  // blocks
  for (int i = 0; i < S::slots; ++i) {
    barrier_init(&control.full[i], S::value_panels / 2);
    barrier_init(&control.empty[i], kReaders * S::sum_warps);
  }
  barrier_init(&control.last_full, 1);
  barrier_init(&control.last_empty, kReaders * S::score_warps);
  barrier_init(&control.weights_full, kGroupThreads);
  barrier_init(&control.weights_empty, S::groups * kGroupThreads);
  for (int i = 0; i < 2; ++i) {
    barrier_init(&control.segment_full[i], 1);
    barrier_init(&control.pieces_full[i], 1);
    barrier_init(&control.segment_empty[i], S::threads - 32);  // all but those that announce
  }
  if constexpr (S::sharing) {
    barrier_init(&control.peers_ready, cluster_blocks);
    barrier_init(&control.inbox_full, 1);
    barrier_init(&control.joined, 1);
  }
  barrier_init_fence();
}

template <class S>
__global__ void __launch_bounds__(S::threads, 1)
    latent_decode(const __grid_constant__ LatentDecode a) {
  extern __shared__ __align__(1024) char memory[];
  auto& control = *reinterpret_cast<typename S::Control*>(memory + S::control_at);
  const uint32_t shared = shared_address(memory);
  const int group = uniform(threadIdx.x / kGroupThreads);
  if (threadIdx.x == 0) {
    prefetch_map(&a.queries);
    prefetch_map(&a.cache);
    init_latent_barriers<S>(control, 1 << a.cluster);
  }
  __syncthreads();
  if constexpr (S::sharing || S::paired) {
    cluster_arrive();
    cluster_wait();
  }
  let_next_grid_start();
  wait_for_previous_grid();
  if (group == 0) {
    give_registers<S::score_registers>();
    Scorer<S>(a, shared, control).run();
  } else if (group <= S::groups) {
    take_registers<S::sum_registers>();
    Summer<S>(a, shared, control, group - 1).run();
  } else {
    give_registers<S::copy_registers>();
    const int warp = uniform(threadIdx.x % kGroupThreads / 32);
    if (warp == 0) {
      announce_segments<S>(a, shared, control);
    } else {
      KeyCopier<S>(a, shared, control, warp - 1).run();
    }
  }
  if constexpr (S::paired) {  // the other may still copy or arrive here
    cluster_arrive();
    cluster_wait();
  }
}

}  // namespace mainboard::cuda
