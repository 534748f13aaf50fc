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

// A row of a tile as a token and a head.
struct RowPlace {
  int token, head;

  __device__ RowPlace(const Prefill& a, const Tile& t, int row) {
    const int of_tile = row * a.pack_multiplier >> 16;  // row / pack
    token = t.token + of_tile;
    head = t.head + row - of_tile * a.pack;
  }
};

// Which keys a row sees.
struct Sight {
  int first, last;

  __device__ Sight(int first_, int last_) : first(first_), last(last_) {}
  __device__ Sight(const Prefill& a, const Tile& t, int row) {
    const int place = RowPlace(a, t, row).token + t.keys - t.queries;
    first = place - a.left;
    last = static_cast<int>(min(int64_t{t.keys} - 1, int64_t{place} + t.right));
  }
};

// What a place of a thread's scores has been counted from its first column.
__device__ constexpr int column_of(int i) { return i / 4 * 8 + i % 2; }

// Turns a score into the exponent of its weight.
struct Scaled {
  float scale, base;
  __device__ float operator()(float x, int) const { return fmaf(x, scale, -base); }
};

// The running softmax of the rows.
//
// Weights are relative to a base that may be behind the largest score: it grows only when a
// weight would be too large, so that most blocks need no maximum and leave the sums alone.
template <class T>
class Softmax {
 public:
  // Turns scores into weights with the base as it is; `row` makes the terms of a row with this
  // base. Returns, for the whole warp, whether no weight is too large and `valid` says yes; the
  // scores stay, and otherwise `weigh` must follow.
  template <int used, int n, int m, class Row, class Valid>
  __device__ bool try_weigh(const float (&s)[n], uint32_t (&weights)[m], const Row& row,
                            const Valid& valid) {
    float total[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) total[r] = exponentials<used>(s, weights, r, row(r, base_[r]));
    const bool fits = total[0] <= kMostTotal && total[1] <= kMostTotal && valid();
    if (!__all_sync(0xffffffffu, fits)) return false;
#pragma unroll
    for (int r = 0; r < 2; ++r) sum_[r] += total[r];
    return true;
  }

  // The same with a base that grows if it must; `shrink` is what earlier sums are multiplied by.
  // `scale` brings scores to base-2 units.
  template <int used, int n, int m>
  __device__ void weigh(const float (&s)[n], uint32_t (&weights)[m], float (&shrink)[2],
                        float scale) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float even = s[2 * r], odd = s[2 * r + 1];
#pragma unroll
      for (int i = 2 * r + 4; i < used / 2; i += 4) {
        even = fmaxf(even, s[i]);
        odd = fmaxf(odd, s[i + 1]);
      }
      const float most = fmaxf(quad_max(fmaxf(even, odd)) * scale, kNothing);
      const float before = base_[r];
      if (most - before > kMostBehind) base_[r] = most;
      shrink[r] = exp2_approx(before - base_[r]);
      sum_[r] = sum_[r] * shrink[r] + exponentials<used>(s, weights, r, Scaled{scale, base_[r]});
    }
  }

  // What row r's sums are multiplied by in the end, and its log-sum-exp. `sink` is -inf for none.
  __device__ float finish(int r, float sink, float* lse) const {
    const float base = fmaxf(base_[r], sink * kLog2E);
    const float sum = quad_sum(sum_[r]);
    if (base == kNothing) {
      *lse = kMinusInfinity;
      return 0.0f;
    }
    const float factor = exp2_approx(base_[r] - base);
    const float total = sum * factor + exp2_approx(sink * kLog2E - base);
    *lse = (base + log2f(total)) * kLn2;
    return factor / total;
  }

 private:
  static constexpr float kNothing = -3e38f;     // the base before any key was seen
  static constexpr float kMostBehind = 8.0f;    // of the base
  static constexpr float kMostTotal = 8192.0f;  // of a thread's weights; some is 2^8 then

  // Row r's weights, and their total in this thread.
  template <int used, int n, int m, class Term>
  __device__ static float exponentials(const float (&s)[n], uint32_t (&weights)[m], int r,
                                       const Term& term) {
    float even = 0.0f, odd = 0.0f;
#pragma unroll
    for (int i = 2 * r; i < used / 2; i += 4) {
      const float low = exp2_approx(term(s[i], i));
      const float high = exp2_approx(term(s[i + 1], i + 1));
      even += low;
      odd += high;
      weights[i / 2] = pack<T>(low, high);
    }
    return even + odd;
  }

  float base_[2] = {kNothing, kNothing}, sum_[2] = {0.0f, 0.0f};
};

// Takes away the scores of keys that the rows, `row` and 8 more, do not see.
template <int used, int n>
__device__ inline void mask(float (&s)[n], const Prefill& a, const Tile& t, int row, int key) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const Sight sight(a, t, row + 8 * r);
    const int last = sight.last - key, first = sight.first - key;
#pragma unroll
    for (int i = 2 * r; i < used / 2; i += 4) {
      const int column = 2 * (i - 2 * r);
      if (column > last || column < first) s[i] = kMinusInfinity;
      if (column + 1 > last || column + 1 < first) s[i + 1] = kMinusInfinity;
    }
  }
}

}  // namespace mainboard::cuda
