// Attention in torch.ops.mainboard_cuda: the schemas of torch.ops.mainboard, for Hopper.
//
// Lengths, slots and tables stay on the device and are trusted; everything that the host can see
// is checked.
#include "csrc/common/arguments.h"
#include "csrc/common/blocks.h"
#include "csrc/common/torch_abi.h"
#include "csrc/cuda/attention.h"
#include "csrc/cuda/cache.h"
#include "csrc/cuda/runtime.h"

namespace mainboard::cuda {
namespace {

void attention(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  const Tensor q = in.tensor(), k = in.tensor(), v = in.tensor(), out = in.tensor();
  const auto lse = in.optional_tensor();
  const Tensor cu_queries = in.tensor();
  const auto cu_keys = in.optional_tensor(), used_keys = in.optional_tensor();
  const auto table = in.optional_tensor();
  const int64_t most_queries = in.integer();
  const int64_t most_keys = in.integer();
  const double scale = in.real();
  const bool causal = in.boolean();
  const int64_t left = in.integer(), right = in.integer();
  const double softcap = in.real();
  const auto slopes = in.optional_tensor(), sinks = in.optional_tensor();
  const auto k_scale = in.optional_tensor(), v_scale = in.optional_tensor();
  const bool deterministic = in.boolean();
  const auto flags = in.optional_tensor();
  check_attention(q, k, v, out, lse, cu_queries, cu_keys, used_keys, table);
  check_attention_options(left, right, softcap, q.size(1), k.size(k.dim() - 2), slopes, sinks,
                          k_scale, v_scale, cu_queries.size(0) - 1, flags);
  require(!flags || !flags->on_cpu(), "causal_flags is not on the device");
  attend({q,         k,
          v,         out,
          lse,       cu_queries,
          cu_keys,   used_keys,
          table,     most_queries,
          most_keys, scale,
          left,      causal ? 0 : right,
          softcap,   slopes,
          sinks,     k_scale,
          v_scale,   deterministic,
          flags});
}

void copy_blocks(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  const std::vector<Tensor> caches = in.tensors();
  const Tensor pairs = in.tensor();
  check_copy_blocks(caches, pairs);
  copy_pages_of(caches, pairs);
}

void swap_blocks(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  const Tensor src = in.tensor(), dst = in.tensor(), pairs = in.tensor();
  check_swap_blocks(src, dst, pairs);
  swap_pages(src, dst, pairs);
}

void mla_decode(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  const Tensor q = in.tensor(), cache = in.tensor(), out = in.tensor();
  const auto lse = in.optional_tensor();
  const Tensor cu_queries = in.tensor(), used_keys = in.tensor(), table = in.tensor();
  const int64_t most_queries = in.integer();
  in.integer();  // max_seqlen_k: the device knows the lengths
  const double scale = in.real();
  const bool causal = in.boolean();
  const auto kv_scale = in.optional_tensor();
  const bool deterministic = in.boolean();
  check_mla_decode(q, cache, out, lse, cu_queries, used_keys, table, kv_scale);
  attend_latent({q, cache, out, lse, cu_queries, used_keys, table, most_queries, scale, causal,
                 kv_scale, deterministic});
}

const Implementations registered = [] {
  Implementations library("CUDA", kNamespace);
  library.add("attention", attention)
      .add("copy_blocks", copy_blocks)
      .add("swap_blocks", swap_blocks)
      .add("mla_decode", mla_decode);
  return library;
}();

}  // namespace
}  // namespace mainboard::cuda
