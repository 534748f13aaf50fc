// Moving whole pages in host memory.
#include "csrc/common/blocks.h"

#include <cstring>
#include <string>

namespace mainboard::cpu {
namespace {

constexpr int64_t kGrain = 4;  // pages that are worth a thread

void copy_blocks(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  const std::vector<Tensor> caches = in.tensors();
  const Tensor mapping = in.tensor();
  check_copy_blocks(caches, mapping);
  const int64_t pairs = mapping.size(0);
  const int64_t* pages = mapping.data<const int64_t>();
  for (const Tensor& cache : caches) {
    for (int64_t i = 0; i < 2 * pairs; ++i) {
      require(pages[i] >= -1 && pages[i] < cache.size(0),
              "a page of block_mapping is out of range");
    }
  }
  for (const Tensor& cache : caches) {
    const int64_t bytes = dense_page_bytes(cache);
    const int64_t step = cache.stride(0) * size_of(cache.dtype());
    char* data = cache.data<char>();
    parallel_for(pairs, kGrain, [&](int64_t i) {
      const int64_t from = pages[2 * i], to = pages[2 * i + 1];
      if (from < 0 || to < 0 || from == to) return;
      std::memcpy(data + to * step, data + from * step, static_cast<size_t>(bytes));
    });
  }
}

void swap_blocks(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  const Tensor src = in.tensor(), dst = in.tensor(), mapping = in.tensor();
  check_swap_blocks(src, dst, mapping);
  const int64_t bytes = dense_page_bytes(src), size = size_of(src.dtype());
  const int64_t* pages = mapping.data<const int64_t>();
  parallel_for(mapping.size(0), kGrain, [&](int64_t i) {
    std::memmove(dst.data<char>() + pages[2 * i + 1] * dst.stride(0) * size,
                 src.data<const char>() + pages[2 * i] * src.stride(0) * size,
                 static_cast<size_t>(bytes));
  });
}

const Implementations registered = [] {
  Implementations library("CPU");
  library.add("copy_blocks", copy_blocks).add("swap_blocks", swap_blocks);
  return library;
}();

}  // namespace
}  // namespace mainboard::cpu
