// Tensors as the kernels address them.
#pragma once

#include "csrc/common/torch_abi.h"
#include "csrc/cpu/kernels.h"

namespace mainboard::cpu {

// q, out and dense k, v: [tokens, heads, dim].
inline Rows token_rows(const Tensor& t) {
  return {t.data<char>(), t.dtype(), t.stride(0), 0, t.stride(1)};
}
// Caches: [pages, page_size, heads, dim].
inline Rows page_rows(const Tensor& t) {
  return {t.data<char>(), t.dtype(), t.stride(0), t.stride(1), t.stride(2)};
}
// Latent caches: [pages, page_size, dim], one row for every head.
inline Rows latent_rows(const Tensor& t) {
  return {t.data<char>(), t.dtype(), t.stride(0), t.stride(1), 0};
}

template <class T>
const T* pointer(const std::optional<Tensor>& t) {
  return t ? t->data<const T>() : nullptr;
}

// 1 when there is a scale for each head, 0 when one serves all.
inline int64_t scale_stride(const std::optional<Tensor>& t) { return t && t->numel() > 1 ? 1 : 0; }

}  // namespace mainboard::cpu
