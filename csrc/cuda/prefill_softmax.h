// Scores to weights, for the two rows of a product that a thread has a part of (see wgmma.h).
#pragma once

#include "csrc/cuda/prefill_tiles.h"
#include "csrc/cuda/ptx.h"
#include "csrc/cuda/scalar.h"

namespace mainboard::cuda {

inline constexpr float kLog2E = 1.44269504088896341f;
inline constexpr float kLn2 = 0.69314718055994531f;
inline constexpr float kMinusInfinity = -INFINITY;

// Four neighbouring lanes share a row.
__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
// Within 2e-7; the hardware's own tanh is good to 5e-4 only, too little for scores of 50.
__device__ inline float tanh_of(float x) {
  return 1.0f - 2.0f * reciprocal_approx(exp2_approx(2.0f * kLog2E * x) + 1.0f);
}

// Which keys the rows see, and whose they are.
struct Rows {
  int row[2];  // in the sequence
  int token[2], head[2];
  int last[2], first[2];       // keys seen
  int least_last, most_first;  // of all the rows of the warp
  int place[2];                // of the query among the keys

  __device__ static Rows of(const Prefill& a, const Tile& t, int warp_row, int lane) {
    Rows r;
    const int shift = t.keys - t.queries;
    const auto last = [&](int token) {
      return static_cast<int>(min(int64_t{t.keys} - 1, int64_t{token} + shift + a.right));
    };
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      r.row[i] = t.row + warp_row + lane / 4 + 8 * i;
      r.token[i] = r.row[i] / a.pack;
      r.head[i] = t.head + r.row[i] - r.token[i] * a.pack;
      r.place[i] = r.token[i] + shift;
      r.last[i] = last(r.token[i]);
      r.first[i] = r.place[i] - a.left;
    }
    r.least_last = last((t.row + warp_row) / a.pack);
    r.most_first = (t.row + warp_row + 15) / a.pack + shift - a.left;
    return r;
  }
};

// The running softmax of the rows. With `transforms`, scores arrive in base-2 units.
template <bool transforms>
class Softmax {
 public:
  __device__ explicit Softmax(const Prefill& a) : scale_(transforms ? 1.0f : a.scale * kLog2E) {}

  // Turns scores into weights; returns in `shrink` what earlier sums are multiplied by.
  template <int n>
  __device__ void weigh(float (&s)[n], float (&shrink)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = most_[r];
#pragma unroll
      for (int i = 2 * r; i < n; i += 4) most = fmaxf(most, fmaxf(s[i], s[i + 1]));
      most = quad_max(most);
      const float base = most == kMinusInfinity ? 0.0f : most * scale_;
      shrink[r] = exp2_approx(most_[r] * scale_ - base);
      most_[r] = most;
      float sum = 0.0f;
#pragma unroll
      for (int i = 2 * r; i < n; i += 4) {
        s[i] = exp2_approx(fmaf(s[i], scale_, -base));
        s[i + 1] = exp2_approx(fmaf(s[i + 1], scale_, -base));
        sum += s[i] + s[i + 1];
      }
      sum_[r] = sum_[r] * shrink[r] + sum;
    }
  }

  // What row r's sums are multiplied by in the end, and its log-sum-exp. `sink` is -inf for none.
  __device__ float finish(int r, float sink, float* lse) const {
    const float most = most_[r] * scale_, base = fmaxf(most, sink * kLog2E);
    const float sum = quad_sum(sum_[r]);
    if (base == kMinusInfinity) {
      *lse = kMinusInfinity;
      return 0.0f;
    }
    const float factor = exp2_approx(most - base);
    const float total = sum * factor + exp2_approx(sink * kLog2E - base);
    *lse = (base + log2f(total)) * kLn2;
    return factor / total;
  }

 private:
  float scale_;
  float most_[2] = {kMinusInfinity, kMinusInfinity}, sum_[2] = {0.0f, 0.0f};
};

// Scale, softcap and ALiBi, to base-2 units. `key` is that of this thread's first column.
template <int n>
__device__ inline void transform(float (&s)[n], const Prefill& a, const Rows& rows, int key) {
  const float inverse_cap = a.softcap > 0.0f ? 1.0f / a.softcap : 0.0f;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    float x = s[i] * a.scale;
    if (a.softcap > 0.0f) x = a.softcap * tanh_of(x * inverse_cap);
    s[i] = x * kLog2E;
  }
  if (a.alibi_slopes == nullptr) return;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float slope = a.alibi_slopes[min(rows.head[r], a.heads - 1)] * kLog2E;
    const int distance = rows.place[r] - key;
#pragma unroll
    for (int i = 2 * r; i < n; i += 4) {
      s[i] -= slope * static_cast<float>(abs(distance - 2 * (i - 2 * r)));
      s[i + 1] -= slope * static_cast<float>(abs(distance - 2 * (i - 2 * r) - 1));
    }
  }
}

// Takes away the scores of keys that a row does not see.
template <int n>
__device__ inline void mask(float (&s)[n], const Rows& rows, int key) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int last = rows.last[r] - key, first = rows.first[r] - key;
#pragma unroll
    for (int i = 2 * r; i < n; i += 4) {
      const int column = 2 * (i - 2 * r);
      if (column > last || column < first) s[i] = kMinusInfinity;
      if (column + 1 > last || column + 1 < first) s[i + 1] = kMinusInfinity;
    }
  }
}

}  // namespace mainboard::cuda
