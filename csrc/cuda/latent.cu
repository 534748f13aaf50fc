#include "csrc/cuda/latent_kernel.h"

namespace mainboard::cuda {
namespace {

template <class T>
LatentKernel describe(DType type) {
  using S = Latent<T>;
  return {type, reinterpret_cast<const void*>(latent_decode<S>), S::shared_bytes, S::threads};
}

}  // namespace

const LatentKernel* find_latent(DType type) {
  static const LatentKernel kernels[] = {describe<__nv_bfloat16>(DType::bf16),
                                         describe<__half>(DType::f16)};
  for (const LatentKernel& kernel : kernels) {
    if (kernel.type == type) return &kernel;
  }
  return nullptr;
}

}  // namespace mainboard::cuda
