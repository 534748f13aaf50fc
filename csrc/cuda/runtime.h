// The CUDA runtime as the operators use it: devices, streams, memory and launches.
#pragma once

#ifdef __HIP__
#include "csrc/hip/cuda_names.h"
#else
#include <cuda_runtime_api.h>
namespace mainboard::cuda {
inline constexpr char kNamespace[] = "mainboard_cuda";  // of the operators, in torch.ops
inline constexpr char kTorchLibrary[] = "libtorch_cuda.so";
}  // namespace mainboard::cuda
#endif

#include <cstdint>

#include "csrc/common/torch_abi.h"

extern "C" {
AOTITorchError aoti_torch_get_device_index(AtenTensorHandle, int32_t*);
int32_t aoti_torch_device_type_cuda();
AOTITorchError aoti_torch_empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides,
                                        int32_t dtype, int32_t device_type, int32_t device_index,
                                        AtenTensorHandle*);
}

namespace mainboard::cuda {

void check_cuda(cudaError_t error, const char* call);

// More shared memory than every kernel may have is asked for, once for each kernel and device.
void allow_shared_memory(const void* kernel, int bytes, int device);

// Makes a tensor's device current, with torch's current stream on it, for as long as it lives.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  int index() const { return index_; }
  cudaStream_t stream() const { return stream_; }
  int multiprocessors() const;

  // Memory from torch's allocator, which this stream may use until the tensor goes.
  Tensor allocate(int64_t floats) const;

  // At least `kCounters` zeros, which the kernels leave as zeros. Calls on one stream share them;
  // each captured call has its own, because its graph may be replayed on any stream.
  static constexpr int64_t kCounters = 4096;
  int* counters() const;

  // Launches so that the grid may start while the one before it ends; it must wait for that itself.
  template <class... Arguments>
  void launch(dim3 grid, dim3 block, int shared_bytes, void (*kernel)(Arguments...),
              Arguments... arguments) const {
    void* pointers[] = {&arguments...};
    launch(grid, block, shared_bytes, reinterpret_cast<const void*>(kernel), pointers);
  }
  void launch(dim3 grid, dim3 block, int shared_bytes, const void* kernel, void** arguments) const;

 private:
  int32_t index_ = 0;
  int before_ = 0;
  cudaStream_t stream_ = nullptr;
};

}  // namespace mainboard::cuda
