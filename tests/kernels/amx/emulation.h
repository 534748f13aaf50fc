// The AMX tile instructions in plain C++, for processors that have none: what the kernels compute
// with them can then be checked anywhere with AVX-512. It says nothing about speed, nor about what
// a processor does with denormal numbers.
//
// Included before everything else (`-include`) when the library is configured with
// MAINBOARD_EMULATED_AMX=ON; no release is.
#pragma once

#include <immintrin.h>

#include <atomic>
#include <cstdint>
#include <cstring>

namespace amx_emulation {

constexpr int kRows = 16, kRowBytes = 64;

struct Tile {
  alignas(64) uint8_t row[kRows][kRowBytes];
};
struct Shape {
  int rows = 0, bytes = 0;
};
inline thread_local Tile tile[8];
inline thread_local Shape shape[8];
inline std::atomic<int64_t> products{0};

inline void configure(const uint8_t* config) {
  for (int t = 0; t < 8; ++t) {
    shape[t] = {config[48 + t], config[16 + 2 * t] | config[17 + 2 * t] << 8};
    if (shape[t].rows > kRows || shape[t].bytes > kRowBytes) __builtin_trap();
  }
  std::memset(tile, 0, sizeof tile);
}
inline void release() {
  for (Shape& s : shape) s = {};
}

// What a tile has beyond its shape becomes zero.
inline void load(int t, const void* base, int64_t stride) {
  if (shape[t].rows == 0) __builtin_trap();
  std::memset(&tile[t], 0, sizeof(Tile));
  for (int r = 0; r < shape[t].rows; ++r) {
    std::memcpy(tile[t].row[r], static_cast<const char*>(base) + r * stride, shape[t].bytes);
  }
}
inline void store(int t, void* base, int64_t stride) {
  if (shape[t].rows == 0) __builtin_trap();
  for (int r = 0; r < shape[t].rows; ++r) {
    std::memcpy(static_cast<char*>(base) + r * stride, tile[t].row[r], shape[t].bytes);
  }
}

inline float widen(uint16_t bits) {
  const uint32_t word = uint32_t{bits} << 16;
  float x;
  std::memcpy(&x, &word, sizeof x);
  return x;
}

inline float widen_half(uint16_t bits) { return _cvtsh_ss(bits); }

// C[m][n] += sum over pairs of A[m][2 k], A[m][2 k + 1] times B[k][2 n], B[k][2 n + 1].
template <float (*widen)(uint16_t)>
inline void multiply_add(int c, int a, int b) {
  if (shape[c].rows != shape[a].rows || shape[c].bytes != shape[b].bytes ||
      shape[a].bytes != 4 * shape[b].rows || shape[c].rows == 0) {
    __builtin_trap();
  }
  products.fetch_add(1, std::memory_order_relaxed);
  for (int m = 0; m < shape[c].rows; ++m) {
    float sum[16];
    uint16_t left[32];
    std::memcpy(sum, tile[c].row[m], sizeof sum);
    std::memcpy(left, tile[a].row[m], sizeof left);
    for (int k = 0; k < 16; ++k) {
      uint16_t right[32];
      std::memcpy(right, tile[b].row[k], sizeof right);
      const float even = widen(left[2 * k]), odd = widen(left[2 * k + 1]);
      for (int n = 0; n < 16; ++n) {
        sum[n] += even * widen(right[2 * n]);
        sum[n] += odd * widen(right[2 * n + 1]);
      }
    }
    std::memcpy(tile[c].row[m], sum, sizeof sum);
  }
}

}  // namespace amx_emulation

// How many products were taken since the library was loaded, by which a test tells what ran.
extern "C" __attribute__((used, visibility("default"))) inline int64_t mainboard_tile_products() {
  return amx_emulation::products.load();
}

// The compiler's own names are macros too.
#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) amx_emulation::configure(config)
#define _tile_release() amx_emulation::release()
#define _tile_loadd(t, base, stride) amx_emulation::load(t, base, stride)
#define _tile_stream_loadd(t, base, stride) amx_emulation::load(t, base, stride)
#define _tile_stored(t, base, stride) amx_emulation::store(t, base, stride)
#define _tile_zero(t) std::memset(&amx_emulation::tile[t], 0, sizeof(amx_emulation::Tile))
#define _tile_dpbf16ps(c, a, b) amx_emulation::multiply_add<amx_emulation::widen>(c, a, b)
#define _tile_dpfp16ps(c, a, b) amx_emulation::multiply_add<amx_emulation::widen_half>(c, a, b)
