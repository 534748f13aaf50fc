// The memory that the blocks of one call share.
#pragma once

#include "csrc/common/arguments.h"
#include "csrc/cuda/decode.h"
#include "csrc/cuda/runtime.h"

namespace mainboard::cuda {

// Allocates slots of `slot_rows` rows of `dim` columns, and counters that are zero: two slots and
// three counters for each of `grid` blocks, or else, if `fixed_slots` are asked for, those and a
// counter for each. The tensor keeps them.
inline Tensor allocate_workspace(const OnDevice& device, int grid, int64_t fixed_slots,
                                 int slot_rows, int64_t dim, Workspace* w) {
  w->rows = (fixed_slots > 0 ? fixed_slots : 2 * int64_t{grid}) * slot_rows;
  const int64_t sums = w->rows * dim, statistics = 2 * 2 * w->rows;
  Tensor memory = device.allocate(sums + statistics + fixed_slots);
  w->sums = memory.data<float>();
  w->statistics = reinterpret_cast<float2*>(w->sums + sums);
  if (fixed_slots > 0) {
    w->counters = reinterpret_cast<int*>(w->sums + sums + statistics);
    check_cuda(cudaMemsetAsync(w->counters, 0, fixed_slots * sizeof(int), device.stream()),
               "cudaMemsetAsync");
  } else {
    require(3 * grid <= OnDevice::kCounters, "the device has more multiprocessors than expected");
    w->counters = device.counters();
  }
  return memory;
}

}  // namespace mainboard::cuda
