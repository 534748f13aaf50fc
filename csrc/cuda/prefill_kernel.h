// Attention of long queries on Hopper: one warpgroup copies, two or three compute.
//
// The structure is FlashAttention-3's (Shah et al., 2024, arXiv:2407.08608) in that warpgroups take
// turns at the matrix units, so that one's softmax falls into the other's products, and that each
// turn has the next block's scores and the last block's values. Blocks of keys are walked from the
// last to the first: those that need a mask come first. What is different:
//
// - Weights are made without knowing the largest score, relative to a base from earlier blocks, and
//   made again if one is too large (prefill_softmax.h).
// - A tile's last block is as long as what is left over, in steps of 32 keys.
// - The next tile's first scores are made in the turn of this one's last values.
//
// Products are 64 rows high; see wgmma.h for what a thread holds of them.
#pragma once

#include "csrc/cuda/prefill_consumer.h"
#include "csrc/cuda/prefill_producer.h"

namespace mainboard::cuda {

template <class S>
__global__ void __launch_bounds__(S::threads, 1) prefill(const __grid_constant__ Prefill a) {
  extern __shared__ char memory[];
  const uint32_t start = shared_address(memory), aligned = (start + 1023) & ~1023u;
  auto* control =
      reinterpret_cast<typename S::Control*>(memory + (aligned - start) + S::control_at);
  if (threadIdx.x == 0) {
    prefetch_map(&a.q);
    prefetch_map(&a.k);
    prefetch_map(&a.v);
    init_barriers<S>(control);
  }
  __syncthreads();
  let_next_grid_start();
  wait_for_previous_grid();
  if (threadIdx.x < kGroupThreads) {
    give_registers<S::producer_registers>();
    const int warp = uniform(threadIdx.x / 32);
    if (!S::fp8 || warp == 0) {
      Producer<S>(a, aligned, control).run(warp);
    } else if constexpr (S::fp8) {
      Converter<S>(a, aligned, control).run();
    }
  } else {
    take_registers<S::consumer_registers>();
    Consumer<S>(a, aligned, control).run();
  }
}

}  // namespace mainboard::cuda
