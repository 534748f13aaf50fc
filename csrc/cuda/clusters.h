// Launches of decode kernels in clusters of blocks.
#pragma once

#include "csrc/cuda/decode.h"
#include "csrc/cuda/runtime.h"

namespace mainboard::cuda {

// How a grid is launched: in clusters of `blocks` blocks, 1 being none. If they are `spread`, each
// block has a multiprocessor to itself.
struct Clusters {
  int blocks = 1;
  bool spread = false;
};

// How many clusters the device holds at once.
int clusters_at_once(const OnDevice& device, const DecodeKernel& kernel, Clusters clusters);

// As OnDevice::launch, in clusters.
void launch_in_clusters(const OnDevice& device, const DecodeKernel& kernel, int grid,
                        Clusters clusters, void** arguments);

}  // namespace mainboard::cuda
