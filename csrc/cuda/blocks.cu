// Moving whole pages: within caches by a kernel, between caches by the copy engines.
#include <algorithm>

#include "csrc/common/blocks.h"
#include "csrc/cuda/cache.h"
#include "csrc/cuda/ptx.h"
#include "csrc/cuda/runtime.h"

namespace mainboard::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kInFlight = 8;      // vectors that a thread has under way
constexpr int kMostCaches = 128;  // of one launch

struct PageCopies {
  struct Cache {
    char* data;
    int64_t step, bytes;  // from page to page; of a page
  } caches[kMostCaches];
  const int64_t* pairs;
};

// One block copies a part of one page, blockIdx.x pair, y part, z cache.
template <class Vector>
__global__ void __launch_bounds__(kThreads) copy_pages(const __grid_constant__ PageCopies a) {
  const auto cache = a.caches[blockIdx.z];
  wait_for_previous_grid();
  let_next_grid_start();
  const int64_t from = a.pairs[2 * int64_t{blockIdx.x}], to = a.pairs[2 * int64_t{blockIdx.x} + 1];
  if (from < 0 || to < 0 || from == to) return;
  const auto* source = reinterpret_cast<const Vector*>(cache.data + from * cache.step);
  auto* target = reinterpret_cast<Vector*>(cache.data + to * cache.step);
  const int64_t vectors = cache.bytes / static_cast<int64_t>(sizeof(Vector));
  const int64_t stride = int64_t{kThreads} * kInFlight * gridDim.y;
  for (int64_t first = int64_t{blockIdx.y} * kThreads * kInFlight + threadIdx.x; first < vectors;
       first += stride) {
    Vector x[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (first + i * kThreads < vectors) x[i] = source[first + i * kThreads];
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (first + i * kThreads < vectors) target[first + i * kThreads] = x[i];
    }
  }
}

int64_t step_of(const Tensor& cache) { return cache.stride(0) * size_of(cache.dtype()); }

}  // namespace

void copy_pages_of(const std::vector<Tensor>& caches, const Tensor& pairs) {
  const OnDevice device(pairs);
  constexpr int64_t kMostPairs = 1 << 30;
  const int64_t count = pairs.size(0);
  require(count <= kMostPairs, "block_mapping is too long");
  if (count == 0) return;
  for (size_t begin = 0; begin < caches.size(); begin += kMostCaches) {
    PageCopies a;
    a.pairs = pairs.data<const int64_t>();
    const size_t end = std::min(caches.size(), begin + kMostCaches);
    bool vectors = true;
    int64_t longest = 0;
    for (size_t i = begin; i < end; ++i) {
      const int64_t bytes = dense_page_bytes(caches[i]), step = step_of(caches[i]);
      a.caches[i - begin] = {caches[i].data<char>(), step, bytes};
      vectors &= (reinterpret_cast<uintptr_t>(caches[i].data<char>()) | step | bytes) % 16 == 0;
      longest = std::max(longest, bytes);
    }
    const int64_t of_block = int64_t{kThreads} * kInFlight * (vectors ? 16 : 1);
    const int64_t parts = std::clamp<int64_t>((longest + of_block - 1) / of_block, 1, 64);
    const dim3 grid(static_cast<unsigned>(count), static_cast<unsigned>(parts),
                    static_cast<unsigned>(end - begin));
    device.launch(grid, kThreads, 0, vectors ? copy_pages<uint4> : copy_pages<char>, a);
  }
}

void swap_pages(const Tensor& src, const Tensor& dst, const Tensor& pairs) {
  const OnDevice device(src.on_cpu() ? dst : src);
  const int64_t bytes = dense_page_bytes(src), from_step = step_of(src), to_step = step_of(dst);
  const int64_t* page = pairs.data<const int64_t>();
  const int64_t count = bytes > 0 ? pairs.size(0) : 0;
  for (int64_t begin = 0, end; begin < count; begin = end) {
    // Pages that follow each other on both sides go in one copy.
    const int64_t from = page[2 * begin], to = page[2 * begin + 1];
    for (end = begin + 1; end < count && from_step == bytes && to_step == bytes; ++end) {
      const int64_t further = end - begin;
      if (page[2 * end] != from + further || page[2 * end + 1] != to + further) break;
    }
    check_cuda(cudaMemcpyAsync(dst.data<char>() + to * to_step, src.data<char>() + from * from_step,
                               static_cast<size_t>((end - begin) * bytes), cudaMemcpyDefault,
                               device.stream()),
               "cudaMemcpyAsync");
  }
}

}  // namespace mainboard::cuda
