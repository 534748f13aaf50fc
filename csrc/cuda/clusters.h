// Launches of decode kernels in clusters of blocks.
#pragma once

#include "csrc/cuda/decode.h"
#include "csrc/cuda/runtime.h"

namespace mainboard::cuda {

// How many clusters of `blocks` blocks the device holds at once.
int clusters_at_once(const OnDevice& device, const DecodeKernel& kernel, int blocks);

// As OnDevice::launch, in clusters of `blocks` blocks; 1 is none.
void launch_in_clusters(const OnDevice& device, const DecodeKernel& kernel, int grid, int blocks,
                        void** arguments);

}  // namespace mainboard::cuda
