// The warp of the latent decode kernel that walks the block's stretch, tells the others of its
// segments, and copies queries and keys.
#pragma once

#include "csrc/cuda/latent_shape.h"

namespace mainboard::cuda {

template <class S>
class Copier {
 public:
  using Control = typename S::Control;

  __device__ Copier(const LatentDecode& a, uint32_t shared, Control& control)
      : a_(a), shared_(shared), control_(control), lane_(threadIdx.x % 32) {}

  __device__ void run() {
    LatentWalker<S::unit_keys> walk(a_, lane_);
    for (int number = 0;; ++number) {
      const LatentSegment s = walk.next();
      barrier_wait(&control_.segment_empty[number % 2], number / 2 % 2 ^ 1);
      if (lane_ == 0) {
        control_.segments[number % 2] = s;
        barrier_arrive(&control_.segment_full[number % 2]);
      }
      __syncwarp();
      if (s.pieces == 0) return;
      table_ = a_.table + s.index * a_.table_row;
      keys_ = s.keys;
      int page = page_of(s.unit);
      copy_queries(s, number);
      for (int unit = s.unit; unit < s.unit_end; ++unit) {
        const int following = unit + 1 < s.unit_end ? page_of(unit + 1) : 0;
        copy(unit, page);
        page = following;
      }
    }
  }

 private:
  // Copies the tile's queries but for their rotary panel. Rows past the sequence's last may be
  // another's: what becomes of them is not written.
  __device__ void copy_queries(const LatentSegment& s, int number) const {
    barrier_wait(&control_.q_empty, number % 2 ^ 1);
    if (lane_ == 0) {
      barrier_arrive_expecting(&control_.q_full, S::value_panels * S::panel_bytes);
#pragma unroll
      for (int panel = 0; panel < S::value_panels; ++panel) {
        copy_box(shared_ + panel * S::panel_bytes, &a_.queries, &control_.q_full,
                 panel * kPanelColumns, s.first_query * static_cast<int>(a_.heads.value) + s.row,
                 0);
      }
    }
    __syncwarp();
  }

  // The page of this lane's box of a unit, and where it begins there.
  __device__ int page_of(int unit) const {
    const int key = unit * S::unit_keys + (lane_ << a_.log_box);
    const bool used = lane_ < S::unit_keys >> a_.log_box && key < keys_;
    return used ? table_[a_.page_blocks.divide(key / kBlockKeys)] : 0;
  }
  __device__ int row_of(int unit) const {
    const int block = unit * (S::unit_keys / kBlockKeys) + (lane_ << a_.log_box) / kBlockKeys;
    const int page_blocks = static_cast<int>(a_.page_blocks.value);
    return (block - a_.page_blocks.divide(block) * page_blocks) * kBlockKeys;
  }

  // Copies a unit when its stage is free: the rotary panel, which is free first, then the others,
  // part by part. Boxes past the last key are left out: the table says nothing of their pages.
  __device__ void copy(int unit, int page) {
    const LatentTurn<S> at(count_++);
    const int left = max(0, keys_ - unit * S::unit_keys);
    const int boxes = min(S::unit_keys, left + (1 << a_.log_box) - 1) >> a_.log_box;
    const int row = row_of(unit);
    const int bytes = (boxes << a_.log_box) * kPanelRowBytes;
    const uint32_t to = shared_ + S::keys_at + at.stage * S::panels * S::panel_bytes;

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
  const uint32_t shared_;
  Control& control_;
  const int lane_;
  const int* table_;
  int keys_;       // of the sequence
  int count_ = 0;  // units before the one at hand
};

}  // namespace mainboard::cuda
