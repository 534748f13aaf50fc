// The compiled decode kernels, one function of each instance file to list its own.
#pragma once

#include <vector>

#include "csrc/cuda/decode.h"

namespace mainboard::cuda {

using DecodeTable = std::vector<DecodeKernel>;

#define MAINBOARD_DECODE(name) void add_decode_##name(DecodeTable* table);
#include "decode_list.inc"
#undef MAINBOARD_DECODE

}  // namespace mainboard::cuda
