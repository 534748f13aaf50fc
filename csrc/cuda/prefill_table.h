// The compiled prefill kernels, one function of each instance file to list its own.
#pragma once

#include <vector>

#include "csrc/cuda/prefill.h"

namespace mainboard::cuda {

using PrefillTable = std::vector<PrefillKernel>;

#define MAINBOARD_PREFILL(name) void add_prefill_##name(PrefillTable* table);
#include "prefill_list.inc"
#undef MAINBOARD_PREFILL

}  // namespace mainboard::cuda
