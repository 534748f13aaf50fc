// A tile's sums, which a warpgroup has in registers (see wgmma.h), to memory.
#pragma once

#include "csrc/cuda/prefill_shape.h"
#include "csrc/cuda/prefill_softmax.h"

namespace mainboard::cuda {

// Swaps the lower lane's second word for the upper lane's first.
__device__ inline void exchange(int distance, bool upper, uint32_t& first, uint32_t& second) {
  const uint32_t other = __shfl_xor_sync(0xffffffffu, upper ? first : second, distance);
  first = upper ? other : first;
  second = upper ? second : other;
}

template <class S>
__device__ inline uint32_t pack_output(const Prefill& a, float low, float high) {
  return S::fp8 && a.bf16 ? pack<__nv_bfloat16>(low, high) : pack<typename S::T>(low, high);
}

// Of 32 columns, four neighbouring lanes have every fourth pair: each gets eight in a row.
template <class S>
__device__ inline uint4 transposed(const Prefill& a, const float (&sums)[S::value_dim / 2], int at,
                                   float factor, int lane) {
  uint32_t w[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    w[j] = pack_output<S>(a, sums[at + 4 * j] * factor, sums[at + 4 * j + 1] * factor);
  }
  const bool odd = lane % 2 != 0, high = lane % 4 > 1;
  exchange(1, odd, w[0], w[1]);
  exchange(1, odd, w[2], w[3]);
  exchange(2, high, w[0], w[2]);
  exchange(2, high, w[1], w[3]);
  return {w[0], w[1], w[2], w[3]};
}

// Writes this thread's part of the warp's 16 rows of the tile, and their log-sum-exp.
template <class S>
__device__ inline void write_out(const Prefill& a, const Tile& t,
                                 const Softmax<typename S::T>& softmax,
                                 const float (&sums)[S::value_dim / 2], float v_scale, int lane,
                                 int warp_row) {
  using T = typename S::T;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const RowPlace place(a, t, warp_row + lane / 4 + 8 * r);
    const bool inside = place.token < t.queries;
    const float sink = a.sinks && inside ? a.sinks[place.head] : kMinusInfinity;
    float lse;
    const float factor = softmax.finish(r, sink, &lse) * v_scale;
    const int64_t token = t.first_query + place.token;
    if (a.lse && inside && lane % 4 == 0) a.lse[place.head * a.lse_head + token] = lse;
    T* out = static_cast<T*>(a.out) + token * a.out_token + place.head * a.out_head;
#pragma unroll
    for (int column = 0; column < S::value_dim; column += 32) {
      const uint4 eight = transposed<S>(a, sums, column / 2 + 2 * r, factor, lane);
      const int own = column + 8 * (lane % 4);
      if (inside && own < a.value_dim) *reinterpret_cast<uint4*>(out + own) = eight;
    }
  }
}

}  // namespace mainboard::cuda
