// From a call's tensors to a launch of the prefill kernel.
#pragma once

#include "csrc/cuda/attention.h"

namespace mainboard::cuda {

// Whether the prefill kernel can serve this call.
bool prefill_serves(const AttentionCall& call);

// Queues the sequences that have more than `skip_rows` rows of a call that it serves.
void attend_prefill(const AttentionCall& call, int skip_rows);

}  // namespace mainboard::cuda
