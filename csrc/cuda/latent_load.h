// The warpgroup of the latent decode kernel that copies: one warp walks the block's stretch and
// tells the others of its segments, one copies keys, two copy queries.
#pragma once

#include "csrc/cuda/latent_shape.h"

namespace mainboard::cuda {

template <class S>
__device__ void announce_segments(const LatentDecode& a, typename S::Control& control) {
  const int lane = threadIdx.x % 32;
  LatentWalker<S> walk(a, lane);
  for (int number = 0;; ++number) {
    Segment s;
    s.pieces = 0;
    if (!walk.done()) s = walk.segment();
    barrier_wait(&control.segment_empty[number % 2], number / 2 % 2 ^ 1);
    if (lane == 0) {
      control.segments[number % 2] = s;
      barrier_arrive(&control.segment_full[number % 2]);
    }
    if (walk.done()) return;
    walk.advance();
  }
}

// Copies keys box by box.
template <class S>
class KeyCopier {
 public:
  using Control = typename S::Control;

  __device__ KeyCopier(const LatentDecode& a, uint32_t shared, Control& control)
      : a_(a), keys_at_(shared + S::keys_at), control_(control), lane_(threadIdx.x % 32) {}

  __device__ void run() {
    SegmentReader<S> segments(control_);
    while (const Segment* s = segments.next()) {
      table_ = a_.table + s->index * a_.table_row;
      keys_ = s->sequence.keys;
      int unit = s->unit;
      const int end = s->unit_end;
      segments.release();
      // Each unit is asked for some units ahead, because the stages alone keep too little on its
      // way from memory.
      int pages[S::units_ahead + 1];
#pragma unroll
      for (int i = 0; i <= S::units_ahead; ++i) {
        pages[i] = page_of(unit + i, end);
        if (i > 0) prefetch(unit + i, end, pages[i]);
      }
      for (; unit < end; ++unit) {
        const int following = page_of(unit + S::units_ahead + 1, end);
        copy(unit, pages[0]);
        prefetch(unit + S::units_ahead + 1, end, following);
#pragma unroll
        for (int i = 0; i < S::units_ahead; ++i) pages[i] = pages[i + 1];
        pages[S::units_ahead] = following;
      }
    }
  }

 private:
  // Whether this lane has a box of a unit.
  __device__ bool has_box(int unit, int end) const {
    const int key = unit * S::unit_keys + (lane_ << a_.log_box);
    return lane_ < S::unit_keys >> a_.log_box && key < keys_ && unit < end;
  }
  // The page of this lane's box of a unit, and where it begins there.
  __device__ int page_of(int unit, int end) const {
    return has_box(unit, end) ? table_[a_.page_blocks.divide(block_of(unit))] : 0;
  }
  __device__ int block_of(int unit) const {
    return unit * (S::unit_keys / kBlockKeys) + (lane_ << a_.log_box) / kBlockKeys;
  }
  __device__ int row_of(int unit) const {
    const int block = block_of(unit), page_blocks = static_cast<int>(a_.page_blocks.value);
    return (block - a_.page_blocks.divide(block) * page_blocks) * kBlockKeys;
  }

  __device__ void prefetch(int unit, int end, int page) const {
    constexpr int kRowBytes = S::key_dim * 2;
    if (S::units_ahead == 0 || a_.k.token != kRowBytes || !has_box(unit, end)) return;
    prefetch_bytes(a_.k.data + page * a_.k.page + row_of(unit) * kRowBytes,
                   kRowBytes << a_.log_box);
  }

  // Copies a unit when its stage is free: the rotary panel, which is free first, then the others,
  // part by part. Boxes past the last key are left out: the table says nothing of their pages.
  __device__ void copy(int unit, int page) {
    const LatentTurn<S> at(count_++);
    const int left = max(0, keys_ - unit * S::unit_keys);
    const int boxes = min(S::unit_keys, left + (1 << a_.log_box) - 1) >> a_.log_box;
    const int row = row_of(unit);
    const int bytes = (boxes << a_.log_box) * kPanelRowBytes;
    const uint32_t to = keys_at_ + at.stage * S::panels * S::panel_bytes;

    barrier_wait(&control_.rotary_empty[at.stage], at.parity ^ 1);
    if (lane_ == 0) barrier_arrive_expecting(&control_.full[at.stage][S::rotary], bytes);
    __syncwarp();
    if (lane_ < boxes) copy_box_of(to, at.stage, S::rotary, lane_, row, page);
#pragma unroll
    for (int part = 0; part < S::parts; ++part) {
      barrier_wait(&control_.empty[at.stage][part], at.parity ^ 1);
      if (part == 0) {
        if (lane_ < S::value_panels) {
          barrier_arrive_expecting(&control_.full[at.stage][lane_], bytes);
        }
        __syncwarp();
      }
      copy_part(to, at.stage, part, boxes, row, page);
    }
    __syncwarp();
  }

  // One thread copies a part's boxes panel by panel; box i's row and page are lane i's.
  __device__ void copy_part(uint32_t to, int stage, int part, int boxes, int row, int page) const {
    constexpr int kMostBoxes = S::part_keys / kBlockKeys;
    const int first = part * S::part_keys >> a_.log_box;
    const int end = min(boxes, first + (S::part_keys >> a_.log_box));
    int rows[kMostBoxes], pages[kMostBoxes];
#pragma unroll
    for (int i = 0; i < kMostBoxes; ++i) {
      rows[i] = __shfl_sync(0xffffffffu, row, first + i);
      pages[i] = __shfl_sync(0xffffffffu, page, first + i);
    }
    if (lane_ != 0) return;
#pragma unroll
    for (int panel = 0; panel < S::value_panels; ++panel) {
#pragma unroll
      for (int i = 0; i < kMostBoxes; ++i) {
        if (first + i < end) copy_box_of(to, stage, panel, first + i, rows[i], pages[i]);
      }
    }
  }

  __device__ void copy_box_of(uint32_t to, int stage, int panel, int box, int row, int page) const {
    copy_box(to + panel * S::panel_bytes + (box << a_.log_box) * kPanelRowBytes, &a_.cache,
             &control_.full[stage][panel], panel * kPanelColumns, row, page);
  }

  const LatentDecode& a_;
  const uint32_t keys_at_;
  Control& control_;
  const int lane_;
  const int* table_;
  int keys_;       // of the sequence
  int count_ = 0;  // units before the one at hand
};

// Copies the queries' rows of each segment, but for the rotary panel; `warp` of S::query_warps.
template <class S>
__device__ void copy_queries(const LatentDecode& a, uint32_t shared, typename S::Control& control,
                             int warp) {
  using T = typename S::T;
  constexpr int kChunks = S::dim / 8;
  const int lane = threadIdx.x % 32;
  SegmentReader<S> segments(control);
  while (const Segment* s = segments.next()) {
    barrier_wait(&control.q_empty, segments.number() % 2 ^ 1);
    for (int row = warp; row < S::rows; row += S::query_warps) {
      const RowPlace place(a, *s, s->row + row);
      const T* from = static_cast<const T*>(a.q) + place.token * a.q_token + place.head * a.q_head;
#pragma unroll
      for (int chunk = lane; chunk < kChunks; chunk += 32) {
        const uint32_t to =
            shared + chunk / 8 * S::panel_bytes + row * kPanelRowBytes + ((chunk ^ row) % 8) * 16;
        copy_async_or_zero(to, place.used ? from + 8 * chunk : a.q, place.used ? 16 : 0);
      }
    }
    commit_copies();
    wait_for_copies<0>();
    publish_to_units();
    barrier_arrive(&control.q_full);
    segments.release();
  }
}

}  // namespace mainboard::cuda
