// The element types that cross the operators.
#pragma once

#include <cstdint>

namespace mainboard {

enum class DType { f32, f16, bf16, e4m3, e5m2, e4m3fnuz, e5m2fnuz, i8, u8, b8, i32, i64 };

constexpr int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::f16:
    case DType::bf16:
      return 2;
    case DType::e4m3:
    case DType::e5m2:
    case DType::e4m3fnuz:
    case DType::e5m2fnuz:
    case DType::u8:
    case DType::b8:
    case DType::i8:
      return 1;
    case DType::i64:
      return 8;
  }
  return 0;
}

}  // namespace mainboard
