// Products of 64-row tiles by a warpgroup (wgmma). Operands lie in shared memory in panels of 64
// columns (128 bytes a row, rows one after another, swizzled by 128 bytes), or come from registers.
//
// A thread of lane l in warp w of the warpgroup holds, of a product's 64 rows, rows 16 w + l / 4
// and 8 more, and of every 8 columns the two from 2 (l % 4) on: d[4 j + 2 r + c] is column 8 j + 2
// (l % 4) + c of its r-th row.
#pragma once

#include "csrc/cuda/hopper.h"

namespace mainboard::cuda {

inline constexpr int kPanelColumns = 64;
inline constexpr int kPanelRowBytes = 128;

// In a cluster, addresses have the block's rank above the 18 bits that an operand takes.
__device__ inline uint32_t without_rank(uint32_t address) { return address & 0x3ffff; }

// An operand in shared memory whose rows are contiguous along what is summed over (queries, keys).
// Sixteen columns further is 32 bytes further, up to the end of the panel.
__device__ inline uint64_t operand_of_rows(uint32_t address) {
  constexpr uint64_t kSwizzle128 = 1, kEightRows = 8 * kPanelRowBytes;
  return kSwizzle128 << 62 | (kEightRows >> 4) << 32 | uint64_t{1} << 16 | address >> 4;
}
// An operand whose rows are what is summed over (values); `panel_bytes` from panel to panel.
__device__ inline uint64_t operand_of_columns(uint32_t address, uint32_t panel_bytes) {
  constexpr uint64_t kSwizzle128 = 1, kEightRows = 8 * kPanelRowBytes;
  return kSwizzle128 << 62 | (kEightRows >> 4) << 32 | uint64_t{panel_bytes >> 4} << 16 |
         address >> 4;
}
// The operand that many bytes further on.
__device__ inline uint64_t advanced(uint64_t operand, uint32_t bytes) {
  return operand + (bytes >> 4);
}

// What the threads wrote to registers and shared memory is seen by the products that follow.
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Keeps the compiler from moving what it does with sums to before or after this place.
template <int n>
__device__ inline void hold(float (&sums)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}
// Waits until at most `pending` groups are under way; `sums` are those of one that has ended.
template <int pending>
__device__ inline void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
template <int pending, int n>
__device__ inline void wait_for_products(float (&sums)[n]) {
  wait_for_products<pending>();
  hold(sums);
}

// 64 x n products of 16-bit T, summed in float32. `add` = 0 starts new sums.
//   rows: d += a b', columns: d += a b; a from registers, or from shared memory with contiguous
//   rows.
template <class T, int n>
struct Product;

#define MAINBOARD_R0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define MAINBOARD_R1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define MAINBOARD_R2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define MAINBOARD_R3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define MAINBOARD_R4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define MAINBOARD_R5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define MAINBOARD_R6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define MAINBOARD_R7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define MAINBOARD_R8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define MAINBOARD_R9 "%72, %73, %74, %75, %76, %77, %78, %79"
#define MAINBOARD_R10 "%80, %81, %82, %83, %84, %85, %86, %87"
#define MAINBOARD_R11 "%88, %89, %90, %91, %92, %93, %94, %95"
#define MAINBOARD_R12 "%96, %97, %98, %99, %100, %101, %102, %103"
#define MAINBOARD_R13 "%104, %105, %106, %107, %108, %109, %110, %111"
#define MAINBOARD_R14 "%112, %113, %114, %115, %116, %117, %118, %119"
#define MAINBOARD_R15 "%120, %121, %122, %123, %124, %125, %126, %127"
#define MAINBOARD_REGISTERS_32 MAINBOARD_R0 ", " MAINBOARD_R1
#define MAINBOARD_REGISTERS_64 MAINBOARD_R0 ", " MAINBOARD_R1 ", " MAINBOARD_R2 ", " MAINBOARD_R3
#define MAINBOARD_REGISTERS_80 MAINBOARD_REGISTERS_64 ", " MAINBOARD_R4
#define MAINBOARD_REGISTERS_96 MAINBOARD_REGISTERS_80 ", " MAINBOARD_R5
#define MAINBOARD_REGISTERS_112 MAINBOARD_REGISTERS_96 ", " MAINBOARD_R6
#define MAINBOARD_REGISTERS_128 MAINBOARD_REGISTERS_112 ", " MAINBOARD_R7
#define MAINBOARD_REGISTERS_192                                                  \
  MAINBOARD_REGISTERS_128 ", " MAINBOARD_R8 ", " MAINBOARD_R9 ", " MAINBOARD_R10 \
                          ","                                                    \
                          " " MAINBOARD_R11
#define MAINBOARD_REGISTERS_256                                                    \
  MAINBOARD_REGISTERS_192 ", " MAINBOARD_R12 ", " MAINBOARD_R13 ", " MAINBOARD_R14 \
                          ", " MAINBOARD_R15
#define MAINBOARD_D8(i)                                                                       \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define MAINBOARD_SUMS_32 MAINBOARD_D8(0), MAINBOARD_D8(8)
#define MAINBOARD_SUMS_64 MAINBOARD_D8(0), MAINBOARD_D8(8), MAINBOARD_D8(16), MAINBOARD_D8(24)
#define MAINBOARD_SUMS_80 MAINBOARD_SUMS_64, MAINBOARD_D8(32)
#define MAINBOARD_SUMS_96 MAINBOARD_SUMS_80, MAINBOARD_D8(40)
#define MAINBOARD_SUMS_112 MAINBOARD_SUMS_96, MAINBOARD_D8(48)
#define MAINBOARD_SUMS_128 MAINBOARD_SUMS_112, MAINBOARD_D8(56)
#define MAINBOARD_SUMS_192 \
  MAINBOARD_SUMS_128, MAINBOARD_D8(64), MAINBOARD_D8(72), MAINBOARD_D8(80), MAINBOARD_D8(88)
#define MAINBOARD_SUMS_256 \
  MAINBOARD_SUMS_192, MAINBOARD_D8(96), MAINBOARD_D8(104), MAINBOARD_D8(112), MAINBOARD_D8(120)
#define MAINBOARD_FROM_SHARED(name, columns, ptx, n, a, b, add_operand)                      \
  static __device__ void name(float (&d)[n / 2], uint64_t left, uint64_t right, int add) {   \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " add_operand                             \
                 ", 0;\n"                                                                    \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." ptx "." ptx               \
                 " {" MAINBOARD_REGISTERS_##n "}, " a ", " b ", p, 1, 1, 0, " columns ";\n}" \
                 : MAINBOARD_SUMS_##n                                                        \
                 : "l"(left), "l"(right), "r"(add));                                         \
  }
#define MAINBOARD_FROM_REGISTERS(name, columns, ptx, n, a0, a1, a2, a3, b, add_operand)           \
  static __device__ void name(float (&d)[n / 2], const uint32_t* left, uint64_t right, int add) { \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " add_operand                                  \
                 ", 0;\n"                                                                         \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." ptx "." ptx                    \
                 " {" MAINBOARD_REGISTERS_##n "}, {" a0 ", " a1 ", " a2 ", " a3 "}, " b           \
                                              ", p, 1, 1, " columns ";\n}"                        \
                 : MAINBOARD_SUMS_##n                                                             \
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right), "r"(add)); \
  }
#define MAINBOARD_METHODS(ptx, n, o0, o1, o2, o3, o4, o5)             \
  MAINBOARD_FROM_SHARED(rows, "0", ptx, n, o0, o1, o2)                \
  MAINBOARD_FROM_SHARED(columns, "1", ptx, n, o0, o1, o2)             \
  MAINBOARD_FROM_REGISTERS(rows, "0", ptx, n, o0, o1, o2, o3, o4, o5) \
  MAINBOARD_FROM_REGISTERS(columns, "1", ptx, n, o0, o1, o2, o3, o4, o5)
// Operands are numbered after the n / 2 sums.
#define MAINBOARD_PRODUCT(n, o0, o1, o2, o3, o4, o5)     \
  template <>                                            \
  struct Product<__nv_bfloat16, n> {                     \
    MAINBOARD_METHODS("bf16", n, o0, o1, o2, o3, o4, o5) \
  };                                                     \
  template <>                                            \
  struct Product<__half, n> {                            \
    MAINBOARD_METHODS("f16", n, o0, o1, o2, o3, o4, o5)  \
  };
MAINBOARD_PRODUCT(32, "%16", "%17", "%18", "%19", "%20", "%21")
MAINBOARD_PRODUCT(64, "%32", "%33", "%34", "%35", "%36", "%37")
MAINBOARD_PRODUCT(80, "%40", "%41", "%42", "%43", "%44", "%45")
MAINBOARD_PRODUCT(96, "%48", "%49", "%50", "%51", "%52", "%53")
MAINBOARD_PRODUCT(112, "%56", "%57", "%58", "%59", "%60", "%61")
MAINBOARD_PRODUCT(128, "%64", "%65", "%66", "%67", "%68", "%69")
MAINBOARD_PRODUCT(192, "%96", "%97", "%98", "%99", "%100", "%101")
MAINBOARD_PRODUCT(256, "%128", "%129", "%130", "%131", "%132", "%133")

#undef MAINBOARD_R0
#undef MAINBOARD_R1
#undef MAINBOARD_R2
#undef MAINBOARD_R3
#undef MAINBOARD_R4
#undef MAINBOARD_R5
#undef MAINBOARD_R6
#undef MAINBOARD_R7
#undef MAINBOARD_R8
#undef MAINBOARD_R9
#undef MAINBOARD_R10
#undef MAINBOARD_R11
#undef MAINBOARD_R12
#undef MAINBOARD_R13
#undef MAINBOARD_R14
#undef MAINBOARD_R15
#undef MAINBOARD_REGISTERS_32
#undef MAINBOARD_REGISTERS_64
#undef MAINBOARD_REGISTERS_80
#undef MAINBOARD_REGISTERS_96
#undef MAINBOARD_REGISTERS_112
#undef MAINBOARD_REGISTERS_128
#undef MAINBOARD_REGISTERS_192
#undef MAINBOARD_REGISTERS_256
#undef MAINBOARD_D8
#undef MAINBOARD_SUMS_32
#undef MAINBOARD_SUMS_64
#undef MAINBOARD_SUMS_80
#undef MAINBOARD_SUMS_96
#undef MAINBOARD_SUMS_112
#undef MAINBOARD_SUMS_128
#undef MAINBOARD_SUMS_192
#undef MAINBOARD_SUMS_256
#undef MAINBOARD_FROM_SHARED
#undef MAINBOARD_FROM_REGISTERS
#undef MAINBOARD_METHODS
#undef MAINBOARD_PRODUCT

}  // namespace mainboard::cuda
