// A row of a tile that was attended to in part, and how parts are joined.
#pragma once

#include "csrc/cuda/ptx.h"

namespace mainboard::cuda {

// Four columns of a row that was attended to in part: weighed sums, and what the weights are
// relative to and add up to.
struct Partial {
  float4 sums = {};
  float most = -INFINITY, total = 0.0f;

  __device__ void scale(float factor) {
    sums.x *= factor;
    sums.y *= factor;
    sums.z *= factor;
    sums.w *= factor;
    total *= factor;
  }
  __device__ void add(float4 x, float x_total, float factor) {
    total += x_total * factor;
    sums.x += x.x * factor;
    sums.y += x.y * factor;
    sums.z += x.z * factor;
    sums.w += x.w * factor;
  }
  // Joins it with `n` others: maximum and total, and sums.
  template <int n>
  __device__ void join(const float2 (&own)[n], const float4 (&x)[n]) {
    float larger = most;
#pragma unroll
    for (int j = 0; j < n; ++j) larger = fmaxf(larger, own[j].x);
    if (larger == -INFINITY) return;
    scale(exp2_approx(most - larger));
    most = larger;
#pragma unroll
    for (int j = 0; j < n; ++j) add(x[j], own[j].y, exp2_approx(own[j].x - most));
  }
};

}  // namespace mainboard::cuda
