#include "csrc/cuda/clusters.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

namespace mainboard::cuda {
namespace {

cudaLaunchAttribute cluster_of(int blocks) {
  cudaLaunchAttribute size;
  size.id = cudaLaunchAttributeClusterDimension;
  size.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  return size;
}

// More than half of what a multiprocessor has keeps a second block away.
int shared_bytes(const DecodeKernel& kernel, Clusters clusters) {
  constexpr int kAlone = 120 << 10;
  return clusters.spread ? std::max(kernel.shared_bytes, kAlone) : kernel.shared_bytes;
}

int ask_clusters_at_once(const OnDevice& device, const DecodeKernel& kernel, Clusters clusters) {
  allow_shared_memory(kernel.function, shared_bytes(kernel, clusters), device.index());
  check_cuda(
      cudaFuncSetAttribute(kernel.function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
      "cudaFuncSetAttribute");
  cudaLaunchAttribute size = cluster_of(clusters.blocks);
  cudaLaunchConfig_t config = {};
  config.gridDim = static_cast<unsigned>(clusters.blocks);
  config.blockDim = static_cast<unsigned>(kernel.threads);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes(kernel, clusters));
  config.attrs = &size;
  config.numAttrs = 1;
  int count = 0;
  check_cuda(cudaOccupancyMaxActiveClusters(&count, kernel.function, &config),
             "cudaOccupancyMaxActiveClusters");
  return count;
}

}  // namespace

int clusters_at_once(const OnDevice& device, const DecodeKernel& kernel, Clusters clusters) {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, int, bool>, int> known;
  std::lock_guard<std::mutex> lock(mutex);
  const std::tuple key(kernel.function, device.index(), clusters.blocks, clusters.spread);
  const auto at = known.find(key);
  if (at != known.end()) return at->second;
  return known[key] = ask_clusters_at_once(device, kernel, clusters);
}

void launch_in_clusters(const OnDevice& device, const DecodeKernel& kernel, int grid,
                        Clusters clusters, void** arguments) {
  if (clusters.blocks == 1) {
    return device.launch(grid, kernel.threads, kernel.shared_bytes, kernel.function, arguments);
  }
  cudaLaunchAttribute attributes[2] = {{}, cluster_of(clusters.blocks)};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = static_cast<unsigned>(grid);
  config.blockDim = static_cast<unsigned>(kernel.threads);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes(kernel, clusters));
  config.stream = device.stream();
  config.attrs = attributes;
  config.numAttrs = 2;
  check_cuda(cudaLaunchKernelExC(&config, kernel.function, arguments), "launch");
}

}  // namespace mainboard::cuda
