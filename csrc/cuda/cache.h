// Cache writes and merges, which only move memory.
#pragma once

#include <optional>
#include <vector>

#include "csrc/common/torch_abi.h"

namespace mainboard::cuda {

void write_to_cache(const Tensor& key, const Tensor& value, const Tensor& key_cache,
                    const Tensor& value_cache, const Tensor& slots,
                    const std::optional<Tensor>& k_scale, const std::optional<Tensor>& v_scale);

// Latent attention's rows: the latent part and, behind it, the rotary one.
void write_latent(const Tensor& latent, const Tensor& rotary, const Tensor& cache,
                  const Tensor& slots, const std::optional<Tensor>& scale);

// Pages of each cache to others of its own, by pairs on the device; and of one cache to another,
// which may be in host memory, by pairs on the host.
void copy_pages_of(const std::vector<Tensor>& caches, const Tensor& pairs);
void swap_pages(const Tensor& src, const Tensor& dst, const Tensor& pairs);

void merge_states(const Tensor& out, const std::optional<Tensor>& out_lse, const Tensor& a,
                  const Tensor& a_lse, const Tensor& b, const Tensor& b_lse);

}  // namespace mainboard::cuda
