// The warpgroup of the latent decode kernel that copies. Its first warp walks the block's stretch,
// tells the others of its segments and copies queries; the other three copy three of a unit's nine
// panels each, because one thread has no time for all of a unit's boxes.
#pragma once

#include "csrc/cuda/latent_shape.h"

namespace mainboard::cuda {

// Announces the block's segments and copies their queries, but for the panels held in registers.
// Rows past the sequence's last may be another's: what becomes of them is not written.
template <class S>
__device__ void announce_segments(const LatentDecode& a, uint32_t shared,
                                  typename S::Control& control) {
  const int lane = threadIdx.x % 32;
  LatentWalker<S::unit_keys> walk(a, lane);
  for (int number = 0;; ++number) {
    const LatentSegment s = walk.next();
    barrier_wait(&control.segment_empty[number % 2], number / 2 % 2 ^ 1);
    if (lane == 0) {
      control.segments[number % 2] = s;
      barrier_arrive(&control.segment_full[number % 2]);
    }
    if (s.sharers == 0) return;
    barrier_wait(&control.q_empty, number % 2 ^ 1);
    if (lane == 0) barrier_arrive_expecting(&control.q_full, S::query_panels * S::panel_bytes);
    __syncwarp();
    if (lane < S::query_panels) {
      copy_box(shared + lane * S::panel_bytes, &a.queries, &control.q_full, lane * kPanelColumns,
               s.first_query * static_cast<int>(a.heads.value) + s.row, 0);
    }
    if (lane == 0) {
      control.pieces[number % 2] = walk.pieces();
      barrier_arrive(&control.pieces_full[number % 2]);
    }
    __syncwarp();
  }
}

// Copies three panels of every unit, box by box: a lane has one box of one of them.
template <class S>
class KeyCopier {
 public:
  using Control = typename S::Control;
  static constexpr int kPanels = 3;
  static_assert(S::panels == kPanels * S::key_warps);

  __device__ KeyCopier(const LatentDecode& a, uint32_t shared, Control& control, int warp)
      : a_(a), control_(control), lane_(threadIdx.x % 32) {
    const int log_boxes = kLogUnit - a_.log_box;  // of a unit
    box_ = lane_ & ((1 << log_boxes) - 1);
    panel_ = warp * kPanels + (lane_ >> log_boxes);
    copies_ = lane_ >> log_boxes < kPanels;
    last_ = copies_ && panel_ == S::panels - 1;
    half_ = half_of_panel(panel_);
    // A pair's blocks copy every second box each, to both.
    own_ = !S::paired || box_ % 2 == static_cast<int>(blockIdx.x) % 2;
    to_ = shared + (last_ ? S::last_at : S::keys_at + slot_panel(panel_) * S::panel_bytes) +
          (box_ << a_.log_box) * kPanelRowBytes;
  }

  __device__ void run() {
    SegmentReader<S> segments(control_);
    while (const LatentSegment* s = segments.next()) {
      // The stages were a cluster's inbox.
      if (S::sharing && segments.number() > 0) {
        barrier_wait(&control_.joined, (segments.number() - 1) % 2);
      }
      table_ = a_.table + s->index * a_.table_row;
      keys_ = s->keys;
      int unit = s->unit;
      const int end = s->unit_end;
      segments.release();
      for (int page = page_of(unit); unit < end; ++unit) {
        const int following = unit + 1 < end ? page_of(unit + 1) : 0;
        copy(unit, page);
        page = following;
      }
    }
  }

 private:
  static constexpr int kLogUnit = 6;
  static_assert(1 << kLogUnit == S::unit_keys);

  __device__ int first_key(int unit) const { return unit * S::unit_keys + (box_ << a_.log_box); }
  // The page of this lane's box. Boxes past the last key are left out: the table says nothing of
  // their pages.
  __device__ int page_of(int unit) const {
    const int key = first_key(unit);
    return key < keys_ ? table_[a_.page_blocks.divide(key / kBlockKeys)] : 0;
  }

  __device__ void copy(int unit, int page) {
    const int key = first_key(unit), block = key / kBlockKeys;
    const int page_blocks = static_cast<int>(a_.page_blocks.value);
    const int row = (block - a_.page_blocks.divide(block) * page_blocks) * kBlockKeys;
    const bool used = own_ && key < keys_;
#pragma unroll
    for (int half = 0; half < 2; ++half, turn_ = turn_.after(1)) {
      barrier_wait(&control_.empty[turn_.slot], turn_.parity ^ 1);
      if (copies_ && !last_ && half_ == half) {
        fill(to_ + turn_.slot * S::slot_bytes, &control_.full[turn_.slot], unit, used, row, page);
      }
      __syncwarp();
    }
    // Only the warp that copies there may wait: nobody waits for another, which might find that the
    // phase after has ended too.
    if (__any_sync(0xffffffffu, last_)) barrier_wait(&control_.last_empty, count_ & 1 ^ 1);
    if (last_) fill(to_, &control_.last_full, unit, used, row, page);
    __syncwarp();
    ++count_;
  }
  // Copies the lane's box of a panel, if it is used; the first box's lane announces the panel.
  __device__ void fill(uint32_t to, uint64_t* full, int unit, bool used, int row, int page) const {
    if (box_ == 0) barrier_arrive_expecting(full, bytes_of(unit));
    if (used) copy_own(to, full, row, page);
  }
  __device__ void copy_own(uint32_t to, uint64_t* full, int row, int page) const {
    const int column = panel_ * kPanelColumns;
    if constexpr (S::paired) {
      copy_box_to_both(to, &a_.cache, full, column, row, page);
    } else {
      copy_box(to, &a_.cache, full, column, row, page);
    }
  }
  // Of a panel's boxes that are copied.
  __device__ int bytes_of(int unit) const {
    const int left = max(0, keys_ - unit * S::unit_keys);
    const int boxes = min(S::unit_keys, left + (1 << a_.log_box) - 1) >> a_.log_box;
    return (boxes << a_.log_box) * kPanelRowBytes;
  }

  const LatentDecode& a_;
  Control& control_;
  const int lane_;
  int box_, panel_, half_;  // of this lane
  bool copies_, own_, last_;
  uint32_t to_;
  const int* table_;
  int keys_;            // of the sequence
  LatentTurn<S> turn_;  // of the half at hand
  int count_ = 0;       // units before the one at hand
};

}  // namespace mainboard::cuda
