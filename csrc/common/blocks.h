// What moving whole pages of caches means, for every device.
#pragma once

#include <algorithm>
#include <vector>

#include "csrc/common/arguments.h"

namespace mainboard {

// Bytes of a page, whose elements must lie together, in any order of the dimensions.
inline int64_t dense_page_bytes(const Tensor& cache) {
  require(cache.dim() >= 2, "a cache is not pages");
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride and size
  for (int64_t d = 1; d < cache.dim(); ++d) {
    if (cache.size(d) != 1) dims.emplace_back(cache.stride(d), cache.size(d));
  }
  std::sort(dims.begin(), dims.end());
  int64_t together = 1;
  for (const auto& [stride, size] : dims) {
    require(size == 0 || stride == together, "a cache's pages are not dense");
    together *= size;
  }
  require(cache.size(0) <= 1 || cache.stride(0) >= together, "a cache's pages overlap");
  return together * size_of(cache.dtype());
}

inline void check_pairs(const Tensor& pairs) {
  require(pairs.dtype() == DType::i64 && pairs.dim() == 2 && pairs.size(1) == 2 &&
              pairs.stride(1) == 1 && (pairs.size(0) <= 1 || pairs.stride(0) == 2),
          "block_mapping is not pairs of int64");
}

inline void check_copy_blocks(const std::vector<Tensor>& caches, const Tensor& pairs) {
  require(!caches.empty(), "caches is empty");
  for (const Tensor& cache : caches) {
    dense_page_bytes(cache);
    require(cache.on_cpu() == pairs.on_cpu(), "block_mapping is not beside the caches");
  }
  check_pairs(pairs);
}

inline void check_swap_blocks(const Tensor& src, const Tensor& dst, const Tensor& pairs) {
  require(dense_page_bytes(src) == dense_page_bytes(dst) && src.dtype() == dst.dtype() &&
              src.dim() == dst.dim(),
          "dst does not fit src");
  for (int64_t d = 1; d < src.dim(); ++d) {
    require(src.size(d) == dst.size(d) && src.stride(d) == dst.stride(d), "dst does not fit src");
  }
  check_pairs(pairs);
  require(pairs.on_cpu(), "block_mapping is not on the CPU");
  const int64_t* page = pairs.data<const int64_t>();
  for (int64_t i = 0; i < pairs.size(0); ++i, page += 2) {
    require(page[0] >= 0 && page[0] < src.size(0) && page[1] >= 0 && page[1] < dst.size(0),
            "a page of block_mapping is out of range");
  }
}

}  // namespace mainboard
