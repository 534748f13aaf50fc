// Descriptions of tensors for the copy engine (TMA).
#pragma once

#include <cuda.h>

#include "csrc/common/torch_abi.h"

namespace mainboard::cuda {

// Of a box of a 16-bit tensor: a row of it has 128 bytes.
inline constexpr int kBoxColumns = 64;

// Whether every row begins at a multiple of 16 bytes and no stride is too long.
bool can_map(const Tensor& tensor);

// A map of `[rows, heads, dim]` or `[pages, rows, heads, dim]` of a 16-bit type: its coordinates
// are (column, head, row) or, for keys and values, (column, head, row, page), of which dense ones
// have one. A box is `kBoxColumns` columns, `heads` heads and `rows` rows, and lies in shared
// memory as rows of 128 bytes, swizzled by 128 bytes, heads next to each other.
CUtensorMap map_queries(const Tensor& tensor, int heads, int rows);
// Of keys and values that are fp8, a box has `columns` columns and is not swizzled.
CUtensorMap map_keys(const Tensor& tensor, int rows, int columns = kBoxColumns);
// The same of `count` rows of `dim`, `distance` elements apart: coordinates (column, row, 0).
CUtensorMap map_rows(const void* data, DType type, int64_t count, int64_t dim, int64_t distance,
                     int rows);
// The same of `[pages, rows, dim]`, with coordinates (column, row, page).
CUtensorMap map_latent(const Tensor& tensor, int rows);

}  // namespace mainboard::cuda
