// What the warpgroups of the latent decode kernel share: shared memory, barriers, numbers.
#pragma once

#include "csrc/cuda/decode_tile.h"
#include "csrc/cuda/latent_schedule.h"
#include "csrc/cuda/wgmma.h"

namespace mainboard::cuda {

template <class T_, LatentMode mode>
struct Latent {
  using T = T_;
  static constexpr bool sharing = mode == LatentMode::sharing;
  static constexpr bool paired = mode == LatentMode::paired;
  static constexpr int key_dim = 576, dim = 512;  // the first 512 columns are the values too
  static constexpr int rows = kLatentRows;
  static constexpr int unit_keys = 64;
  static constexpr int slots = 5;   // in shared memory: halves of units, see slot_panel
  static constexpr int groups = 2;  // that sum
  static constexpr int group_columns = dim / groups;
  static constexpr int threads = kGroupThreads * (1 + groups + 1);
  static constexpr int score_warps = 4, sum_warps = 4 * groups, key_warps = 3;
  // In all what the warpgroups have at the start, 128 each.
  static constexpr int score_registers = 128, sum_registers = 176, copy_registers = 32;

  static constexpr int value_panels = dim / kPanelColumns, panels = key_dim / kPanelColumns;
  // The queries' last panels are held in registers, from where they reach the matrix units without
  // a way through shared memory: that has as much to do as the units.
  static constexpr int held_panels = 3, query_panels = panels - held_panels;
  static constexpr int panel_bytes = 64 * kPanelRowBytes;

  // In shared memory: the queries but for what the scoring warpgroup holds; the ring of halves of
  // values; a unit's last panel, which is no value; its weights; then this.
  struct Control {
    uint64_t q_full, q_empty;
    uint64_t full[slots], empty[slots], last_full, last_empty;
    uint64_t scored;  // how many units
    uint64_t weights_full, weights_empty;
    uint64_t segment_full[2], segment_empty[2];
    uint64_t pieces_full[2];
    LatentSegment segments[2];
    LatentPieces pieces[2];
    // What a unit makes of the sums before it: of rows i and i + 8 of each warp's 16.
    float2 shrink[rows / 2];
    float2 statistics[2][rows];  // of every second segment: reference and total
    bool is_last;
    // Of a cluster: its blocks can be sent results; own ones have come; they are joined.
    uint64_t peers_ready, inbox_full, joined;
  };
  static constexpr int keys_at = query_panels * panel_bytes;
  static constexpr int slot_bytes = value_panels / 2 * panel_bytes;
  static constexpr int last_at = keys_at + slots * slot_bytes;
  static constexpr int weights_at = last_at + panel_bytes;
  static constexpr int control_at = weights_at + panel_bytes;
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

// A unit's values lie in two slots of the ring: of each summing warpgroup's four panels, the two
// that it multiplies first are in the one, the others in the other. Each half comes, is scored and
// goes as one: a wait for each panel took as long as the panel's products.
__device__ constexpr int half_of_panel(int panel) { return panel % 4 / 2; }
__device__ constexpr int slot_panel(int panel) { return panel / 4 * 2 + panel % 2; }

// Transposes what four neighbouring lanes hold: element i of lane j becomes element j of lane i.
__device__ inline void transpose_quad(uint32_t (&x)[4], int lane) {
#pragma unroll
  for (int step = 1; step <= 2; step *= 2) {
    const bool upper = (lane & step) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & step) continue;
      const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? x[i] : x[i + step], step);
      (upper ? x[i] : x[i + step]) = got;
    }
  }
}

// Says that this warp needs what a barrier guards no longer.
__device__ inline void release_warp(uint64_t* barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) barrier_arrive(barrier);
}

// The same for keys: in a pair both blocks must know.
template <class S>
__device__ void release_keys(uint64_t* barrier) {
  if constexpr (S::paired) {
    __syncwarp();
    if (threadIdx.x % 32 < 2) barrier_arrive_in_block(barrier, threadIdx.x % 32);
  } else {
    release_warp(barrier);
  }
}

// Where a thread's weights of a unit's first 16 keys are, for it to hand over or to take.
template <class S>
__device__ uint32_t weights_of(uint32_t shared) {
  return shared + S::weights_at + threadIdx.x % kGroupThreads * 16;
}
inline constexpr int kWeightsStep = kGroupThreads * 16;  // bytes from 16 keys to the next

// A slot of the ring, and the parity of its phase.
template <class S>
struct LatentTurn {
  int slot = 0, parity = 0;

  __device__ LatentTurn after(int halves) const {
    const int next = slot + halves;
    const bool again = next >= S::slots;
    return {again ? next - S::slots : next, parity ^ static_cast<int>(again)};
  }
};

// Takes the block's segments one after another; all warps of the block see the same.
template <class S>
class SegmentReader {
 public:
  __device__ explicit SegmentReader(typename S::Control& control) : control_(control) {}

  // Waits for the next segment; null at the end. It stays until `release`, and so do its pieces.
  __device__ const LatentSegment* next() {
    barrier_wait(&control_.segment_full[number_ % 2], number_ / 2 % 2);
    const LatentSegment* s = &control_.segments[number_ % 2];
    return s->sharers == 0 ? nullptr : s;
  }
  __device__ const LatentPieces& pieces() {
    barrier_wait(&control_.pieces_full[number_ % 2], number_ / 2 % 2);
    return control_.pieces[number_ % 2];
  }
  __device__ void release() {
    barrier_arrive(&control_.segment_empty[number_ % 2]);
    ++number_;
  }
  __device__ int number() const { return number_; }

 private:
  typename S::Control& control_;
  int number_ = 0;
};

}  // namespace mainboard::cuda
