#include "csrc/cuda/latent_kernel.h"

namespace mainboard::cuda {
namespace {

template <class T>
DecodeKernel describe(DType type) {
  using S = Latent<T>;
  return {type,
          type,
          S::key_dim,
          S::row_tiles,
          reinterpret_cast<const void*>(latent_decode<S>),
          S::shared_bytes,
          S::unit_keys,
          1,
          S::threads};
}

}  // namespace

const DecodeKernel* find_latent(DType type) {
  static const DecodeKernel kernels[] = {describe<__nv_bfloat16>(DType::bf16),
                                         describe<__half>(DType::f16)};
  for (const DecodeKernel& kernel : kernels) {
    if (kernel.query == type) return &kernel;
  }
  return nullptr;
}

}  // namespace mainboard::cuda
