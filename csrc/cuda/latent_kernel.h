// Latent attention (MLA) over few queries: one key head of 576 columns, whose first 512 are the
// values too, so that every row is read once.
//
// A block holds 64 rows of queries x heads and two stages of 64 keys. Two warpgroups make weights
// of queries and keys, in turn; two sum the values, half of the columns each, which no single one
// has the registers for; one warp copies. They meet at barriers only, so that the matrix units have
// products of one kind while the other waits for exponentials or for memory.
#pragma once

#include "csrc/cuda/latent_load.h"
#include "csrc/cuda/latent_score.h"
#include "csrc/cuda/latent_sum.h"

namespace mainboard::cuda {

template <class S>
__device__ void init_latent_barriers(typename S::Control& control) {
  constexpr int kReaders = S::warps_of_scores + S::warps_of_sums;
  barrier_init(&control.q_full, 1);
  barrier_init(&control.q_empty, S::warps_of_scores);
  for (int i = 0; i < S::stages; ++i) {
    for (uint64_t& full : control.full[i]) barrier_init(&full, 1);
    for (uint64_t& empty : control.empty[i]) barrier_init(&empty, S::warps_of_sums);
    barrier_init(&control.rotary_empty[i], 4);
    barrier_init(&control.weights_full[i], kGroupThreads);
    barrier_init(&control.weights_empty[i], S::warps_of_sums);
  }
  for (int i = 0; i < 2; ++i) {
    barrier_init(&control.segment_full[i], 1);
    barrier_init(&control.segment_empty[i], kReaders);
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
    init_latent_barriers<S>(control);
  }
  __syncthreads();
  let_next_grid_start();
  wait_for_previous_grid();
  if (group < S::score_groups) {
    give_registers<S::score_registers>();
    Scorer<S>(a, shared, control, group).run();
  } else if (group < S::score_groups + S::sum_groups) {
    take_registers<S::sum_registers>();
    Summer<S>(a, shared, control, group - S::score_groups).run();
  } else {
    give_registers<S::copy_registers>();
    if (threadIdx.x % kGroupThreads >= 32) return;
    Copier<S>(a, shared, control).run();
  }
}

}  // namespace mainboard::cuda
