// The operators' kernels of the fake device: one thread, written to be read.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace fake {

using Optional = std::optional<at::Tensor>;

void attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& out,
               const Optional& lse, const at::Tensor& cu_seqlens_q, const Optional& cu_seqlens_k,
               const Optional& seqused_k, const Optional& block_table, double scale, bool causal,
               int64_t window_left, int64_t window_right, double softcap,
               const Optional& alibi_slopes, const Optional& sinks, const Optional& k_scale,
               const Optional& v_scale, const Optional& causal_flags);

void reshape_and_cache(const at::Tensor& key, const at::Tensor& value, const at::Tensor& key_cache,
                       const at::Tensor& value_cache, const at::Tensor& slots,
                       const Optional& k_scale, const Optional& v_scale);

void merge_attention_states(const at::Tensor& out, const Optional& out_lse, const at::Tensor& a,
                            const at::Tensor& a_lse, const at::Tensor& b, const at::Tensor& b_lse);

}  // namespace fake
