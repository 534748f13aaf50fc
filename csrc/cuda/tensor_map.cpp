#include "csrc/cuda/tensor_map.h"

#include <algorithm>

#include "csrc/cuda/runtime.h"

namespace mainboard::cuda {
namespace {

constexpr int64_t kAlignment = 16, kLongestStride = (int64_t{1} << 40) - 1;

struct Axis {
  int64_t size, stride_bytes;
  int box;
};

// The one function of the driver that is needed, without linking to the driver.
decltype(&cuTensorMapEncodeTiled) find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                              cudaEnableDefault, &result),
             "cudaGetDriverEntryPointByVersion");
  if (result != cudaDriverEntryPointSuccess) {
    throw std::runtime_error("this driver has no cuTensorMapEncodeTiled; it needs CUDA 12");
  }
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

CUtensorMap encode(const void* data, DType dtype, int64_t columns, const Axis* axes, uint32_t rank,
                   int box_columns = kBoxColumns) {
  static const auto encode_tiled = find_encode();
  cuuint64_t sizes[4] = {static_cast<cuuint64_t>(columns)}, strides[3] = {};
  cuuint32_t box[4] = {static_cast<cuuint32_t>(box_columns)}, steps[4] = {1, 1, 1, 1};
  for (uint32_t i = 0; i + 1 < rank; ++i) {
    // A tensor without elements is never read, but must have a size; where there is one element,
    // torch gives any stride.
    sizes[i + 1] = static_cast<cuuint64_t>(std::max<int64_t>(axes[i].size, 1));
    strides[i] = static_cast<cuuint64_t>(axes[i].size > 1 ? axes[i].stride_bytes : kAlignment);
    box[i + 1] = static_cast<cuuint32_t>(axes[i].box);
  }
  const bool bytes = size_of(dtype) == 1;
  const auto type = bytes                  ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                    : dtype == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                           : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  CUtensorMap map;
  const CUresult error =
      encode_tiled(&map, type, rank, const_cast<void*>(data), sizes, strides, box, steps,
                   CU_TENSOR_MAP_INTERLEAVE_NONE,
                   bytes ? CU_TENSOR_MAP_SWIZZLE_NONE : CU_TENSOR_MAP_SWIZZLE_128B,
                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (error != CUDA_SUCCESS) {
    throw std::runtime_error("the driver refused a tensor map: error " + std::to_string(error));
  }
  return map;
}

CUtensorMap encode(const Tensor& tensor, const Axis* axes, uint32_t rank) {
  return encode(tensor.data<void>(), tensor.dtype(), tensor.size(tensor.dim() - 1), axes, rank);
}

}  // namespace

bool can_map(const Tensor& tensor) {
  const int64_t size = size_of(tensor.dtype());
  if (reinterpret_cast<uintptr_t>(tensor.data<void>()) % kAlignment != 0) return false;
  for (int64_t d = 0; d + 1 < tensor.dim(); ++d) {
    const int64_t bytes = tensor.stride(d) * size;
    const bool fits = bytes > 0 && bytes % kAlignment == 0 && bytes <= kLongestStride;
    if (tensor.size(d) > 1 && !fits) return false;
  }
  return true;
}

CUtensorMap map_queries(const Tensor& q, int heads, int rows) {
  const int64_t size = size_of(q.dtype());
  const Axis axes[] = {{q.size(1), q.stride(1) * size, heads},
                       {q.size(0), q.stride(0) * size, rows}};
  return encode(q, axes, 3);
}

CUtensorMap map_keys(const Tensor& k, int rows, int columns) {
  const int64_t size = size_of(k.dtype()), d = k.dim();
  const Axis head = {k.size(d - 2), k.stride(d - 2) * size, 1};
  const Axis row = {k.size(d - 3), k.stride(d - 3) * size, rows};
  const Axis page = d == 4 ? Axis{k.size(0), k.stride(0) * size, 1} : Axis{1, 0, 1};
  const Axis axes[] = {head, row, page};
  return encode(k.data<void>(), k.dtype(), k.size(d - 1), axes, 4, columns);
}

CUtensorMap map_rows(const void* data, DType type, int64_t count, int64_t dim, int64_t distance,
                     int rows) {
  const Axis axes[] = {{count, distance * size_of(type), rows}, {1, 0, 1}};
  return encode(data, type, dim, axes, 3);
}

CUtensorMap map_latent(const Tensor& cache, int rows) {
  const int64_t size = size_of(cache.dtype());
  const Axis axes[] = {{cache.size(1), cache.stride(1) * size, rows},
                       {cache.size(0), cache.stride(0) * size, 1}};
  return encode(cache, axes, 3);
}

}  // namespace mainboard::cuda
