// Which compiled decode kernel serves a call.
#include "csrc/cuda/decode_table.h"

namespace mainboard::cuda {
namespace {

DecodeTable list_kernels() {
  DecodeTable table;
#define MAINBOARD_DECODE(name) add_decode_##name(&table);
#include "decode_list.inc"
#undef MAINBOARD_DECODE
  return table;
}

const DecodeTable& kernels() {
  static const DecodeTable table = list_kernels();
  return table;
}

bool serves(const DecodeKernel& kernel, DType query, DType cache, int64_t head_dim) {
  return kernel.query == query && kernel.cache == cache && kernel.head_dim == head_dim;
}

// Has twice the warps, where two blocks of the others share a multiprocessor.
bool is_alone(const DecodeKernel& kernel) {
  return kernel.heads == 1 && kernel.head_dim <= 128 && kernel.threads > 32 * kWarps;
}

}  // namespace

const DecodeKernel* find_decode(DType query, DType cache, int64_t head_dim, int64_t rows) {
  const DecodeKernel* best = nullptr;
  for (const DecodeKernel& kernel : kernels()) {
    if (!serves(kernel, query, cache, head_dim) || kernel.heads != 1 || is_alone(kernel)) continue;
    best = &kernel;  // in order of row_tiles
    if (kernel.row_tiles * kTileRows >= rows) break;
  }
  return best;
}

const DecodeKernel* find_decode_alone(DType query, DType cache, int64_t head_dim, int64_t rows) {
  for (const DecodeKernel& kernel : kernels()) {
    const bool fits = is_alone(kernel) && rows <= kTileRows;
    if (fits && serves(kernel, query, cache, head_dim)) return &kernel;
  }
  return nullptr;
}

const DecodeKernel* find_decode_of_heads(DType query, DType cache, int64_t head_dim, int64_t rows,
                                         int heads) {
  for (const DecodeKernel& kernel : kernels()) {
    const bool fits = kernel.heads == heads && rows <= kernel.head_rows;
    if (fits && serves(kernel, query, cache, head_dim)) return &kernel;
  }
  return nullptr;
}

}  // namespace mainboard::cuda
