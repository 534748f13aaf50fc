// What a prefill kernel is made of: sizes, registers, and what its warps share.
#pragma once

#include <type_traits>

#include "csrc/cuda/prefill_tiles.h"
#include "csrc/cuda/scalar.h"
#include "csrc/cuda/wgmma.h"

namespace mainboard::cuda {

// More tiles than are announced before the oldest of them has been written out.
inline constexpr int kTilesKnown = 4;

// `T` is what products are made of. With `fp8`, keys and values come as that and are converted; the
// queries and the output are of the type that the call names.
template <class T_, int kDim, int kValueDim, bool kTransforms, bool kFp8 = false>
struct PrefillShape {
  using T = T_;
  static constexpr int dim = kDim, value_dim = kValueDim;
  static constexpr bool transforms = kTransforms, fp8 = kFp8;
  static constexpr int groups = dim == 64 ? 3 : 2;  // warpgroups that compute
  static constexpr int rows = 64 * groups;
  static constexpr int keys = dim <= 128         ? 128
                              : fp8              ? (dim <= 192 ? 80 : 64)
                              : value_dim <= 192 ? 112
                                                 : 80;
  // Blocks have `keys` keys, but a tile's last has a multiple of the grain: each multiple has code
  // of its own.
  static constexpr int grain = keys != 128 || fp8 ? keys : 32;
  // With room for the next tile's queries, its first scores are made with this one's last sums.
  static constexpr int q_stages = dim <= 128 ? 2 : 1;
  static constexpr bool ahead = q_stages == 2;
  // With room for two sets of weights, one is made while the other is multiplied.
  static constexpr bool doubled = groups == 2 && dim <= 128 && !transforms;
  static constexpr int stages = dim == 64 && !fp8 ? 4 : 2;
  static constexpr int raw_stages = !fp8 ? 0 : dim == 64 ? 4 : 2;
  static constexpr int threads = kGroupThreads * (groups + 1);
  static constexpr int warps = 4 * groups;  // that compute
  static constexpr int converters = 3;      // warps that convert
  static constexpr int producer_registers = groups == 3 ? 32 : 40;
  static constexpr int consumer_registers = groups == 3 ? 160 : 232;

  static constexpr int panels = dim / kPanelColumns, value_panels = value_dim / kPanelColumns;
  static constexpr int q_panel = rows * kPanelRowBytes, panel = keys * kPanelRowBytes;
  static constexpr int q_bytes = panels * q_panel;
  static constexpr int k_bytes = panels * panel, v_bytes = value_panels * panel;
  static constexpr int raw_bytes = keys * (dim > value_dim ? dim : value_dim);
  static constexpr int bytes_of_key = (fp8 ? 1 : 2) * (dim + value_dim);

  // Barriers of a block of fp8 keys or values on its way.
  struct Raw {
    uint64_t full, empty;
  };
  // In shared memory, from a multiple of 1,024 on: stages of Q, K, V and fp8, then this.
  struct Control {
    uint64_t known[kTilesKnown], q_full[q_stages], q_empty[q_stages];
    uint64_t k_full[stages], k_empty[stages], v_full[stages], v_empty[stages];
    Raw raw[raw_stages > 0 ? raw_stages : 1];
    Tile tiles[kTilesKnown];
  };
  static constexpr int k_at = q_stages * q_bytes, v_at = k_at + stages * k_bytes;
  static constexpr int raw_at = v_at + stages * v_bytes;
  static constexpr int control_at = raw_at + raw_stages * raw_bytes;
  static constexpr int shared_bytes = 1024 + control_at + static_cast<int>(sizeof(Control));
};

// The same number in all lanes, known to the compiler to be so.
__device__ inline int uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }

// Where in a ring of stages number `count` is, and its phase's parity.
template <int stages>
struct Turn {
  int stage, parity;
  __device__ explicit Turn(uint32_t count)
      : stage(uniform(count % stages)), parity(count / stages % 2) {}
};

// Says that this warp needs what a barrier guards no longer.
__device__ inline void release(uint64_t* barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) barrier_arrive(barrier);
}

template <class S>
__device__ void init_barriers(typename S::Control* control) {
  for (int i = 0; i < kTilesKnown; ++i) barrier_init(&control->known[i], 1);
  for (int i = 0; i < S::q_stages; ++i) {
    barrier_init(&control->q_full[i], 1);
    barrier_init(&control->q_empty[i], S::warps);
  }
  for (int i = 0; i < S::stages; ++i) {
    barrier_init(&control->k_full[i], S::fp8 ? S::converters : 1);
    barrier_init(&control->v_full[i], S::fp8 ? S::converters : 1);
    barrier_init(&control->k_empty[i], S::warps);
    barrier_init(&control->v_empty[i], S::warps);
  }
  for (int i = 0; i < S::raw_stages; ++i) {
    barrier_init(&control->raw[i].full, 1);
    barrier_init(&control->raw[i].empty, S::converters);
  }
  barrier_init_fence();
}

}  // namespace mainboard::cuda
