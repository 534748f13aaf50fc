// From a call's tensors to a launch of the prefill kernel.
#pragma once

#include "csrc/cuda/attention.h"

namespace mainboard::cuda {

// Whether the prefill kernel can serve this call.
bool prefill_serves(const AttentionCall& call);

// Queues the call, which it serves, on the current stream.
void attend_prefill(const AttentionCall& call);

}  // namespace mainboard::cuda
