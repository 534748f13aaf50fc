// The boxed implementations of torch.ops.mainboard.* for the CPU, which operators.cpp registers.
#pragma once

#include "csrc/common/torch_abi.h"

namespace mainboard::cpu {

void attention(StableIValue* stack, uint64_t, uint64_t);
void mla_decode(StableIValue* stack, uint64_t, uint64_t);
void reshape_and_cache(StableIValue* stack, uint64_t, uint64_t);
void concat_and_cache_mla(StableIValue* stack, uint64_t, uint64_t);
void merge_attention_states(StableIValue* stack, uint64_t, uint64_t);

}  // namespace mainboard::cpu
