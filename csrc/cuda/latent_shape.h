// What the warpgroups of the latent decode kernel share: shared memory, barriers, numbers.
#pragma once

#include "csrc/cuda/decode_tile.h"
#include "csrc/cuda/latent_schedule.h"
#include "csrc/cuda/wgmma.h"

namespace mainboard::cuda {

template <class T_>
struct Latent {
  using T = T_;
  static constexpr int key_dim = 576, dim = 512;  // the first 512 columns are the values too
  static constexpr int rows = kLatentRows;
  static constexpr int unit_keys = 64;
  static constexpr int stages = 2;
  static constexpr int part_keys = kLatentPartKeys, parts = unit_keys / part_keys;
  static constexpr int groups = 2;  // that sum
  static constexpr int group_columns = dim / groups;
  static constexpr int threads = kGroupThreads * (1 + groups + 1);
  static constexpr int score_warps = 4, sum_warps = 4 * groups, key_warps = 3;
  // In all what the warpgroups have at the start, 128 each.
  static constexpr int score_registers = 104, sum_registers = 176, copy_registers = 56;

  static constexpr int value_panels = dim / kPanelColumns, panels = key_dim / kPanelColumns;
  static constexpr int rotary = value_panels;  // the panel behind the values
  static constexpr int panel_bytes = 64 * kPanelRowBytes;

  // In shared memory: the queries but for the last panel, which the scoring warpgroup holds in
  // registers; the stages of keys; the weights of each stage's keys; then this.
  struct Control {
    uint64_t q_full, q_empty;
    uint64_t full[stages][panels], empty[stages][parts];
    uint64_t weights_full[stages][parts], weights_empty[stages];
    uint64_t segment_full[2], segment_empty[2];
    LatentSegment segments[2];
    float shrink[stages][rows];       // what a unit makes of the sums before it
    float2 statistics[stages][rows];  // at a segment's end: reference and total
    bool is_last;
  };
  static constexpr int keys_at = value_panels * panel_bytes;
  static constexpr int weights_at = keys_at + stages * panels * panel_bytes;
  static constexpr int control_at = weights_at + stages * panel_bytes;
  static constexpr int shared_bytes = control_at + static_cast<int>(sizeof(Control));
  static_assert(shared_bytes <= 227 << 10);
};

// Named barriers; 0 is __syncthreads's.
inline constexpr int kSumsBarrier = 1, kTailBarriers = 2;

// What sums are multiplied by, and the row's log-sum-exp: of a row whose weights, relative to
// `reference`, add up to `total`.
__device__ inline float output_scale(const LatentDecode& a, float total) {
  return total > 0.0f ? (a.kv_scale ? a.kv_scale[0] : 1.0f) / total : 0.0f;
}
__device__ inline void write_lse(const LatentDecode& a, const LatentPlace& place, float reference,
                                 float total) {
  if (a.lse == nullptr) return;
  a.lse[place.head * a.lse_head + place.token] =
      total > 0.0f ? (reference + __log2f(total)) * kLn2 : -INFINITY;
}

// The same number in all lanes, known to the compiler to be so.
__device__ inline int uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }

// Says that this warp needs what a barrier guards no longer.
__device__ inline void release_warp(uint64_t* barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) barrier_arrive(barrier);
}

// Where a thread's weights of 16 keys are, for it to hand over or to take.
template <class S>
__device__ uint32_t weights_of(uint32_t shared, int stage, int step) {
  return shared + S::weights_at + stage * S::panel_bytes + step * kGroupThreads * 16 +
         threadIdx.x % kGroupThreads * 16;
}

// Where the unit of a block's `count` is in the ring, and its phase's parity.
template <class S>
struct LatentTurn {
  int stage, parity;
  __device__ explicit LatentTurn(int count) : stage(count & 1), parity(count >> 1 & 1) {}
};

// Takes the block's segments one after another; all warps of the block see the same.
template <class S>
class SegmentReader {
 public:
  __device__ explicit SegmentReader(typename S::Control& control) : control_(control) {}

  // Waits for the next segment; null at the end. It stays until `release`.
  __device__ const LatentSegment* next() {
    barrier_wait(&control_.segment_full[number_ % 2], number_ / 2 % 2);
    const LatentSegment* s = &control_.segments[number_ % 2];
    return s->pieces == 0 ? nullptr : s;
  }
  __device__ void release() {
    release_warp(&control_.segment_empty[number_ % 2]);
    ++number_;
  }
  __device__ int number() const { return number_; }

 private:
  typename S::Control& control_;
  int number_ = 0;
};

}  // namespace mainboard::cuda
