// Which compiled decode kernel serves a call.
#include "csrc/cuda/decode_table.h"

namespace mainboard::cuda {
namespace {

DecodeTable all_kernels() {
  DecodeTable table;
#define MAINBOARD_DECODE(name) add_decode_##name(&table);
#include "decode_list.inc"
#undef MAINBOARD_DECODE
  return table;
}

}  // namespace

const DecodeKernel* find_decode(DType query, DType cache, int64_t head_dim, int64_t rows) {
  static const DecodeTable table = all_kernels();
  const DecodeKernel* best = nullptr;
  for (const DecodeKernel& kernel : table) {
    if (kernel.query != query || kernel.cache != cache || kernel.head_dim != head_dim) continue;
    best = &kernel;  // in order of row_tiles
    if (kernel.row_tiles * kTileRows >= rows) break;
  }
  return best;
}

}  // namespace mainboard::cuda
