// Latent attention (MLA) over few queries: one key head of 576 columns, whose first 512 are the
// values too, so that every row is read once.
//
// A block holds 64 rows of queries x heads and two stages of 64 keys. Two warpgroups compute and a
// warp copies; they meet at barriers in shared memory only. The idea of two warpgroups that have
// half of the columns each and make the weights in turn is FlashMLA's.
#pragma once

#include "csrc/cuda/latent_load.h"
#include "csrc/cuda/latent_work.h"

namespace mainboard::cuda {

template <class S>
__device__ void init_latent_barriers(typename S::Control& control) {
  constexpr int kGroupWarps = kGroupThreads / 32, kWarps = kGroupWarps * S::groups;
  barrier_init(&control.q_full, 1);
  barrier_init(&control.q_empty, kWarps);
  for (int i = 0; i < S::stages; ++i) {
    for (uint64_t& full : control.full[i]) barrier_init(&full, 1);
    for (uint64_t& empty : control.empty[i]) barrier_init(&empty, kWarps);
    barrier_init(&control.rotary_empty[i], kGroupWarps);
    barrier_init(&control.weights_full[i], kGroupThreads);
    barrier_init(&control.weights_empty[i], kGroupWarps);
  }
  for (int i = 0; i < 2; ++i) {
    barrier_init(&control.segment_full[i], 1);
    barrier_init(&control.segment_empty[i], kWarps);
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
  if (group < S::groups) {
    take_registers<S::work_registers>();
    Worker<S>(a, shared, control, group).run();
  } else {
    give_registers<S::copy_registers>();
    if (threadIdx.x % kGroupThreads < 32) Copier<S>(a, shared, control).run();
  }
}

}  // namespace mainboard::cuda
