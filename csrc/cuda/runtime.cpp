#include "csrc/cuda/runtime.h"

#include <dlfcn.h>

#include <map>
#include <mutex>
#include <string>
#include <utility>

namespace mainboard::cuda {
namespace {

using GetStream = AOTITorchError (*)(int32_t device, void** stream);

// The one function that only a torch built for CUDA has. Looked up rather than linked, so that the
// library loads into any torch of its ABI.
GetStream find_get_stream() {
  void* own = dlopen(kTorchLibrary, RTLD_NOW | RTLD_NOLOAD);
  void* found = dlsym(own ? own : RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream");
  if (found == nullptr) {
    throw std::runtime_error("this torch is not built for this device: it has no current stream");
  }
  return reinterpret_cast<GetStream>(found);
}

// Lets this thread allocate although one of its streams is being captured.
class DuringCapture {
 public:
  DuringCapture() { exchange(); }
  ~DuringCapture() { exchange(); }

 private:
  void exchange() { check_cuda(cudaThreadExchangeStreamCaptureMode(&mode_), "capture mode"); }
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Zeroed memory of one device, handed out in parts that are never taken back.
class Zeros {
 public:
  int* take(int64_t count) {
    if (left_ < count) grow();
    int* part = next_;
    next_ += count;
    left_ -= count;
    return part;
  }

 private:
  static constexpr int64_t kChunk = 256 * OnDevice::kCounters;

  void grow() {
    DuringCapture relaxed;
    void* memory = nullptr;
    cudaStream_t own = nullptr;
    const size_t bytes = kChunk * sizeof(int);
    check_cuda(cudaMalloc(&memory, bytes), "cudaMalloc");
    check_cuda(cudaStreamCreateWithFlags(&own, cudaStreamNonBlocking), "cudaStreamCreate");
    check_cuda(cudaMemsetAsync(memory, 0, bytes, own), "cudaMemsetAsync");
    check_cuda(cudaStreamSynchronize(own), "cudaStreamSynchronize");
    check_cuda(cudaStreamDestroy(own), "cudaStreamDestroy");
    next_ = static_cast<int*>(memory);
    left_ = kChunk;
  }

  int* next_ = nullptr;
  int64_t left_ = 0;
};

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace

void check_cuda(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(call) + " failed: " + cudaGetErrorString(error));
}

void allow_shared_memory(const void* kernel, int bytes, int device) {
  constexpr int kAlwaysAllowed = 48 << 10;
  if (bytes <= kAlwaysAllowed) return;
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, int> allowed;
  std::lock_guard<std::mutex> lock(mutex);
  int& most = allowed[{kernel, device}];
  if (bytes <= most) return;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
             "cudaFuncSetAttribute");
  most = bytes;
}

OnDevice::OnDevice(const Tensor& tensor) {
  static const GetStream get_stream = find_get_stream();
  check(aoti_torch_get_device_index(tensor.handle(), &index_), "get_device_index");
  void* stream = nullptr;
  check(get_stream(index_, &stream), "get_current_cuda_stream");
  stream_ = static_cast<cudaStream_t>(stream);
  check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
  if (before_ != index_) check_cuda(cudaSetDevice(index_), "cudaSetDevice");
}

OnDevice::~OnDevice() {
  if (before_ != index_) static_cast<void>(cudaSetDevice(before_));
}

int OnDevice::multiprocessors() const {
  static std::mutex mutex;
  static std::map<int, int> known;
  std::lock_guard<std::mutex> lock(mutex);
  int& count = known[index_];
  if (count == 0) {
    check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, index_),
               "cudaDeviceGetAttribute");
  }
  return count;
}

Tensor OnDevice::allocate(int64_t floats) const {
  const int64_t stride = 1;
  AtenTensorHandle handle = nullptr;
  check(aoti_torch_empty_strided(1, &floats, &stride, aoti_torch_dtype_float32(),
                                 aoti_torch_device_type_cuda(), index_, &handle),
        "empty_strided");
  return Tensor(handle);
}

int* OnDevice::counters() const {
  static std::mutex mutex;
  static std::map<int, Zeros> zeros;
  static std::map<std::pair<int, cudaStream_t>, int*> of_stream;
  std::lock_guard<std::mutex> lock(mutex);
  if (is_capturing(stream_)) return zeros[index_].take(kCounters);
  int*& own = of_stream[{index_, stream_}];
  if (own == nullptr) own = zeros[index_].take(kCounters);
  return own;
}

void OnDevice::launch(dim3 grid, dim3 block, int shared_bytes, const void* kernel,
                      void** arguments) const {
  allow_shared_memory(kernel, shared_bytes, index_);
  cudaLaunchAttribute overlap;
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream_;
  config.attrs = &overlap;
  config.numAttrs = 1;
  check_cuda(cudaLaunchKernelExC(&config, kernel, arguments), "launch");
}

}  // namespace mainboard::cuda
