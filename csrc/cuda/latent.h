// One call of the latent decode kernel, as the host describes it to the device.
#pragma once

#include <cuda.h>

#include "csrc/cuda/decode.h"

namespace mainboard::cuda {

struct LatentDecode : Decode {
  CUtensorMap cache;  // of [pages, rows of a page, 576]; a box is 64 columns of some rows
  int log_box;        // log2 of those: 16, 32 or 64, never in two pages
};

#ifndef MAINBOARD_LATENT_PART
#define MAINBOARD_LATENT_PART 32
#endif
inline constexpr int kLatentPartKeys = MAINBOARD_LATENT_PART;  // the most rows of a box

// The kernel for latent attention (keys of 576 columns, values of 512), or null.
const DecodeKernel* find_latent(DType type);

}  // namespace mainboard::cuda
