#include "csrc/cuda/clusters.h"

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

int ask_clusters_at_once(const OnDevice& device, const DecodeKernel& kernel, int blocks) {
  allow_shared_memory(kernel.function, kernel.shared_bytes, device.index());
  check_cuda(
      cudaFuncSetAttribute(kernel.function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
      "cudaFuncSetAttribute");
  cudaLaunchAttribute size = cluster_of(blocks);
  cudaLaunchConfig_t config = {};
  config.gridDim = static_cast<unsigned>(blocks);
  config.blockDim = static_cast<unsigned>(kernel.threads);
  config.dynamicSmemBytes = static_cast<size_t>(kernel.shared_bytes);
  config.attrs = &size;
  config.numAttrs = 1;
  int count = 0;
  check_cuda(cudaOccupancyMaxActiveClusters(&count, kernel.function, &config),
             "cudaOccupancyMaxActiveClusters");
  return count;
}

}  // namespace

int clusters_at_once(const OnDevice& device, const DecodeKernel& kernel, int blocks) {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, int>, int> known;
  std::lock_guard<std::mutex> lock(mutex);
  const std::tuple key(kernel.function, device.index(), blocks);
  const auto at = known.find(key);
  if (at != known.end()) return at->second;
  return known[key] = ask_clusters_at_once(device, kernel, blocks);
}

void launch_in_clusters(const OnDevice& device, const DecodeKernel& kernel, int grid, int blocks,
                        void** arguments) {
  if (blocks == 1) {
    return device.launch(grid, kernel.threads, kernel.shared_bytes, kernel.function, arguments);
  }
  cudaLaunchAttribute attributes[2] = {{}, cluster_of(blocks)};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = static_cast<unsigned>(grid);
  config.blockDim = static_cast<unsigned>(kernel.threads);
  config.dynamicSmemBytes = static_cast<size_t>(kernel.shared_bytes);
  config.stream = device.stream();
  config.attrs = attributes;
  config.numAttrs = 2;
  check_cuda(cudaLaunchKernelExC(&config, kernel.function, arguments), "launch");
}

}  // namespace mainboard::cuda
