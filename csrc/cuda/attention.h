// What a call of the operator becomes on the device.
#pragma once

#include <optional>

#include "csrc/common/torch_abi.h"

namespace mainboard::cuda {

// One call of `attention`, checked.
struct AttentionCall {
  const Tensor &q, &k, &v, &out;
  const std::optional<Tensor>& lse;
  const Tensor& cu_queries;
  const std::optional<Tensor>&cu_keys, &used_keys, &table;
  int64_t most_queries, most_keys;  // of a sequence
  double scale;
  int64_t left, right;  // -1: unbounded
  double softcap;
  const std::optional<Tensor>&slopes, &sinks, &k_scale, &v_scale;
  bool deterministic;
  const std::optional<Tensor>& causal_flags;
};

// One call of `mla_decode`, checked.
struct LatentCall {
  const Tensor &q, &cache, &out;
  const std::optional<Tensor>& lse;
  const Tensor &cu_queries, &used_keys, &table;
  int64_t most_queries;  // of a sequence
  double scale;
  bool causal;
  const std::optional<Tensor>& kv_scale;
  bool deterministic;
};

// A side of a window as the kernels take it.
inline constexpr int kUnbounded = 1 << 30;
inline int side(int64_t size) {
  return size < 0 || size > kUnbounded ? kUnbounded : static_cast<int>(size);
}

// Queues the call on the current stream.
void attend(const AttentionCall& call);
void attend_latent(const LatentCall& call);

}  // namespace mainboard::cuda
