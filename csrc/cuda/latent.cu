#include "csrc/cuda/latent_kernel.h"

namespace mainboard::cuda {
namespace {

template <class T, LatentMode mode>
LatentKernel describe(DType type) {
  using S = Latent<T, mode>;
  return {type, mode, reinterpret_cast<const void*>(latent_decode<S>), S::shared_bytes, S::threads};
}

}  // namespace

const LatentKernel* find_latent(DType type, LatentMode mode) {
  using M = LatentMode;
  static const LatentKernel kernels[] = {describe<__nv_bfloat16, M::alone>(DType::bf16),
                                         describe<__nv_bfloat16, M::paired>(DType::bf16),
                                         describe<__nv_bfloat16, M::sharing>(DType::bf16),
                                         describe<__half, M::alone>(DType::f16),
                                         describe<__half, M::paired>(DType::f16),
                                         describe<__half, M::sharing>(DType::f16)};
  for (const LatentKernel& kernel : kernels) {
    if (kernel.type == type && kernel.mode == mode) return &kernel;
  }
  return nullptr;
}

}  // namespace mainboard::cuda
