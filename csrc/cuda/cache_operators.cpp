// The operators that only move memory, with the schemas of torch.ops.mainboard: for NVIDIA's
// devices in torch.ops.mainboard_cuda, and compiled as HIP for AMD's in torch.ops.mainboard_hip.
#include "csrc/common/arguments.h"
#include "csrc/common/torch_abi.h"
#include "csrc/cuda/cache.h"
#include "csrc/cuda/runtime.h"

namespace mainboard::cuda {
namespace {

void reshape_and_cache(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  const Tensor key = in.tensor(), value = in.tensor();
  const Tensor key_cache = in.tensor(), value_cache = in.tensor(), slots = in.tensor();
  const auto k_scale = in.optional_tensor(), v_scale = in.optional_tensor();
  check_reshape_and_cache(key, value, key_cache, value_cache, slots, k_scale, v_scale);
  write_to_cache(key, value, key_cache, value_cache, slots, k_scale, v_scale);
}

void merge_attention_states(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  const Tensor out = in.tensor();
  const auto out_lse = in.optional_tensor();
  const Tensor a = in.tensor(), a_lse = in.tensor(), b = in.tensor(), b_lse = in.tensor();
  check_merge(out, out_lse, a, a_lse, b, b_lse);
  merge_states(out, out_lse, a, a_lse, b, b_lse);
}

void concat_and_cache_mla(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  const Tensor latent = in.tensor(), rotary = in.tensor(), cache = in.tensor();
  const Tensor slots = in.tensor();
  const auto scale = in.optional_tensor();
  check_concat_and_cache_mla(latent, rotary, cache, slots, scale);
  write_latent(latent, rotary, cache, slots, scale);
}

const Implementations registered = [] {
  Implementations library("CUDA", kNamespace);
  library.add("reshape_and_cache", reshape_and_cache)
      .add("merge_attention_states", merge_attention_states)
      .add("concat_and_cache_mla", concat_and_cache_mla);
  return library;
}();

}  // namespace
}  // namespace mainboard::cuda
