// One warp's arithmetic: 16 rows of queries against blocks of 16 keys, softmax as it goes.
//
// In the matrix unit's layout lane i holds rows i / 4 and i / 4 + 8, and of every 8 columns the two
// at 2 * (i % 4). Scores are in units of log2, so that a weight is one exp2.
#pragma once

#include "csrc/cuda/decode_load.h"

namespace mainboard::cuda {

inline constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Of numbers, not NaN, by their bits: those of negative ones the other way round.
__device__ inline float warp_max(float x) {
  const int bits = __float_as_int(x);
  const int most = __reduce_max_sync(0xffffffffu, bits ^ (bits >> 31 & 0x7fffffff));
  return __int_as_float(most ^ (most >> 31 & 0x7fffffff));
}

// The two rows of a lane: which keys they see, and their ALiBi slope in log2 units.
struct RowPair {
  int position[2], first[2], end[2];
  float slope[2];
  int all_from, all_to;  // keys that every row of the warp sees
};

// A row of a tile as a token, a query head and its key head. Of key heads side by side each has an
// equal share of the rows.
template <class S>
struct RowPlace {
  int query, token, head, kv_head;
  bool used;

  __device__ RowPlace(const Decode& a, const Segment& s, int row) {
    const int beside = S::heads == 1 ? 0 : row / S::head_rows;
    row -= beside * S::head_rows;
    const int group = static_cast<int>(a.group.value);
    query = a.group.divide(row);
    used = row < s.sequence.queries * group;
    token = s.sequence.first_query + query;
    kv_head = s.head * S::heads + beside;
    head = kv_head * group + row - query * group;
  }
};

template <class S>
class Tile {
 public:
  using T = typename S::T;
  using KV = typename S::KV;
  using Matrix = typename S::Matrix;
  using Place = RowPlace<S>;
  static constexpr int kSteps = S::dim / 16, kSumSteps = S::sums_dim / 16;

  // `queries` is where the block's queries are, or would be if it shared them.
  __device__ Tile(char* queries, int in_team, int lane)
      : shared_queries_(queries), in_team_(in_team) {
    const int row = in_team / S::columns * kTileRows + lane % 16;
    query_row_ = shared_address(queries) + row * S::query_pitch + lane / 16 * 16;
  }

  // Prepares for a segment: what the rows may see, and where their queries are; reads nothing.
  __device__ void place(const Decode& a, const Segment& s, int lane) {
    const int first = s.row + in_team_ / S::columns * kTileRows;
    place_rows(a, s, first, lane);
    any_below_ = S::warp_heads == 2 || Place(a, s, first + 8).used;
  }

  // Reads the queries, unless they are shared.
  __device__ void read() {
    if constexpr (!S::shares_queries) read_queries();
  }

  // Starts on it: reads flags, slopes and scales.
  __device__ void enter(const Decode& a, const Segment& s) {
    if constexpr (!S::shares_queries && S::fp8) {
#pragma unroll
      for (auto& step : queries_) {
#pragma unroll
        for (uint32_t& x : step) x = halves_of<T>(x);
      }
    }
    if (a.causal_flags && a.causal_flags[s.index]) {
#pragma unroll
      for (int i = 0; i < 2; ++i) rows_.end[i] = min(rows_.end[i], rows_.position[i] + 1);
      rows_.all_to = min(rows_.all_to, top_ + 1);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      rows_.slope[i] = a.alibi_slopes && query_[i] ? -a.alibi_slopes[head_[i]] * kLog2E : 0.0f;
    }
#pragma unroll
    for (int h = 0; h < S::warp_heads; ++h) {
      const int head = s.head * S::heads + first_head() + h;
      scale_[h] = a.scale_log2 * (a.k_scale ? a.k_scale[head * a.k_scale_stride] : 1.0f);
    }
  }

  // All threads of the block copy its queries, between barriers.
  __device__ void share_queries(const Decode& a, const Segment& s, int thread) {
    constexpr int kPairs = S::dim / 2;
    for (int i = thread; i < S::rows * kPairs; i += S::threads) {
      const int row = i / kPairs, pair = i % kPairs;
      const Place place(a, s, s.row + row);
      const T* from = static_cast<const T*>(a.q) + place.token * a.q_token + place.head * a.q_head;
      uint32_t x = place.used ? *reinterpret_cast<const uint32_t*>(from + 2 * pair) : 0;
      int to = pair;
      if constexpr (S::fp8) {  // the columns of a step in the order that `multiply_fp8` has
        x = halves_of<T>(x);
        to = pair / 8 * 8 + pair % 2 * 4 + pair % 8 / 2;
      }
      *reinterpret_cast<uint32_t*>(shared_queries_ + row * S::query_pitch + 4 * to) = x;
    }
  }

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      maximum[i] = -INFINITY;
      total[i] = 0.0f;
    }
#pragma unroll
    for (auto& column : sums) {
#pragma unroll
      for (float& x : column) x = 0.0f;
    }
  }

  // Attends to `n` blocks of keys: block i begins with key `key + 16 * i` and is at `k[i]`, its
  // values `tensor_bytes` behind. The address is the lane's own for `load_matrices`.
  template <int n>
  __device__ void attend(const Decode& a, const uint32_t (&k)[n], const uint32_t (&v)[n], int key,
                         int lane) {
    float s[n][2][4];
    if constexpr (S::warp_heads == 1) {
      multiply_keys<n>(s, k);
    } else {
      multiply_keys_of_both<n>(s, k);
    }
    scale_and_mask<n>(a, s, key, lane);
    uint32_t weights[n][4];
    weigh<n>(s, weights);
    if constexpr (S::warp_heads == 1) {
      add_values<n>(weights, v);
    } else {
      add_values_of_both<n>(weights, v);
    }
  }

  float maximum[2], total[2];  // of each row; the total is of this lane's columns only
  float sums[S::sums_dim / 8][4];

 private:
  __device__ void read_queries() {
    // With fp8 keys a lane's columns of a step are four in a row, for the queries too.
    constexpr int kNext = S::fp8 ? 2 : 8;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) queries_[step][i] = queries_[step][2 + i] = 0;
      // Often the last eight rows are nobody's; a short call waits for instructions, too.
      if ((i == 1 && !any_below_) || query_[i] == nullptr) continue;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const T* from = query_[i] + step * 16;
        queries_[step][i] = *reinterpret_cast<const uint32_t*>(from);
        queries_[step][2 + i] = *reinterpret_cast<const uint32_t*>(from + kNext);
      }
    }
  }

  // Of those side by side, the first that the warp has.
  __device__ int first_head() const {
    return in_team_ / S::columns % S::head_warps * S::warp_heads;
  }

  __device__ void place_rows(const Decode& a, const Segment& s, int first, int lane) {
    const int last = s.sequence.queries * static_cast<int>(a.group.value) - 1;
    const int before = s.sequence.keys - s.sequence.queries;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Place place(a, s, first + lane / 4 + 8 * i);
      const int position = place.query + before;
      rows_.position[i] = position;
      rows_.first[i] = position - a.left;
      rows_.end[i] = min(s.sequence.keys, position + a.right + 1);
      head_[i] = place.head;
      query_[i] = place.used ? static_cast<const T*>(a.q) + place.token * a.q_token +
                                   place.head * a.q_head + lane % 4 * (S::fp8 ? 4 : 2)
                             : nullptr;
    }
    const int of_head = S::heads == 1 ? first : 0;
    const int top = a.group.divide(of_head), bottom = a.group.divide(min(of_head + 15, last));
    rows_.all_from = before + bottom - a.left;
    rows_.all_to = min(s.sequence.keys, before + top + a.right + 1);
    top_ = before + top;
  }

  // Where in a row of the cache the `i`th block's keys begin, and the warp's columns of its values:
  // of two key heads each block is there twice.
  __device__ static constexpr int head_byte(int i) { return i % S::warp_heads * S::head_bytes; }
  __device__ int value_byte(int i) const {
    constexpr int kBytes = S::sums_dim * static_cast<int>(sizeof(KV));
    return head_byte(i) + in_team_ % S::columns * kBytes;
  }

  // Of two key heads the first has the scores of rows 0 to 7, the second those of rows 8 to 15.
  template <int n>
  __device__ void multiply_keys_of_both(float (&s)[n][2][4], const uint32_t (&k)[n]) {
    float each[2 * n][2][4];
    uint32_t keys[2 * n];
#pragma unroll
    for (int i = 0; i < 2 * n; ++i) keys[i] = k[i / 2];
    multiply_keys<2 * n>(each, keys);
#pragma unroll
    for (int i = 0; i < n; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) s[i][j / 4][j % 4] = each[2 * i + j % 4 / 2][j / 4][j % 4];
    }
  }

  // A head's values have no weight in the other's rows: one set of sums serves both. (What is not
  // finite in a head's values therefore shows in its neighbour's result too.)
  template <int n>
  __device__ void add_values_of_both(const uint32_t (&weights)[n][4], const uint32_t (&v)[n]) {
    uint32_t own[2 * n][4], values[2 * n];
#pragma unroll
    for (int i = 0; i < 2 * n; ++i) {
      values[i] = v[i / 2];
#pragma unroll
      for (int j = 0; j < 4; ++j) own[i][j] = j % 2 == i % 2 ? weights[i / 2][j] : 0;
    }
    add_values<2 * n>(own, values);
  }

  template <int n>
  __device__ void multiply_keys(float (&s)[n][2][4], const uint32_t (&k)[n]) {
#pragma unroll
    for (int i = 0; i < n; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) s[i][j / 4][j % 4] = 0.0f;
    }
    if constexpr (S::fp8) {
#pragma unroll
      for (int step = 0; step < kSteps; step += 2) {
#pragma unroll
        for (int i = 0; i < n; ++i) {
          uint32_t m[4];
          load_matrices(m, further_in_row<S>(k[i], head_byte(i) + step * 16));
          multiply_fp8(s[i], m[0], m[2], step);
          if (step + 1 < kSteps) multiply_fp8(s[i], m[1], m[3], step + 1);
        }
      }
    } else {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        uint32_t q[4];
        queries_of(step, q);
#pragma unroll
        for (int i = 0; i < n; ++i) {
          uint32_t m[4];
          load_matrices(m, further_in_row<S>(k[i], head_byte(i) + step * 32));
          multiply_add<Matrix>(s[i][0], q, m[0], m[1]);
          multiply_add<Matrix>(s[i][1], q, m[2], m[3]);
        }
      }
    }
  }

  // 16 columns of fp8 keys 0 to 7 and 8 to 15.
  __device__ void multiply_fp8(float (&s)[2][4], uint32_t low, uint32_t high, int step) {
    uint32_t q[4];
    queries_of(step, q);
    multiply_add<Matrix>(s[0], q, halves_of_fp8<KV>(low), halves_of_fp8<KV>(low >> 16));
    multiply_add<Matrix>(s[1], q, halves_of_fp8<KV>(high), halves_of_fp8<KV>(high >> 16));
  }

  // 16 columns of the warp's queries.
  __device__ void queries_of(int step, uint32_t (&q)[4]) const {
    if constexpr (S::shares_queries) {
      load_matrices(q, query_row_ + step * 32);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) q[i] = queries_[step][i];
    }
  }

  // Of a lane's row `r`.
  __device__ float scale_of(int r) const { return scale_[S::warp_heads == 1 ? 0 : r]; }

  template <int n>
  __device__ void scale_and_mask(const Decode& a, float (&s)[n][2][4], int key, int lane) {
    const bool plain = a.softcap == 0.0f && a.alibi_slopes == nullptr;
    const bool seen = key >= rows_.all_from && key + n * kBlockKeys <= rows_.all_to;
    if (plain && seen) {
#pragma unroll
      for (int i = 0; i < n; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) s[i][j / 4][j % 4] *= scale_of(j % 4 / 2);
      }
      return;
    }
    const float cap = a.softcap, cap_log2 = a.softcap * kLog2E;
    // tanh(x) = 1 - 2 / (exp(2 x) + 1), here of x = score / cap; scale_ has a log2(e) too many.
    float inside[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) inside[r] = cap > 0.0f ? 2.0f * scale_of(r) / cap : 0.0f;
#pragma unroll
    for (int i = 0; i < n; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        float& x = s[i][j / 4][j % 4];
        const int r = j % 4 / 2;
        const int at = key + i * kBlockKeys + j / 4 * 8 + lane % 4 * 2 + j % 2;
        if (cap > 0.0f) {
          x = cap_log2 * (1.0f - 2.0f * reciprocal_approx(exp2_approx(x * inside[r]) + 1.0f));
        } else {
          x *= scale_of(r);
        }
        x += rows_.slope[r] * static_cast<float>(abs(rows_.position[r] - at));
        if (at < rows_.first[r] || at >= rows_.end[r]) x = -INFINITY;
      }
    }
  }

  // Scores to weights relative to the rows' maxima so far, as operands of the matrix unit.
  template <int n>
  __device__ void weigh(float (&s)[n][2][4], uint32_t (&weights)[n][4]) {
    float base[2];
    bool grew = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = s[0][0][2 * r];
#pragma unroll
      for (int i = 0; i < n; ++i) {
#pragma unroll
        for (int j = 0; j < 2; ++j) most = fmaxf(most, fmaxf(s[i][j][2 * r], s[i][j][2 * r + 1]));
      }
      most = fmaxf(maximum[r], quad_max(most));
      grew |= most > maximum[r];
      base[r] = most;
    }
    if (__any_sync(0xffffffffu, grew)) rescale(base);
#pragma unroll
    for (int r = 0; r < 2; ++r) base[r] = base[r] == -INFINITY ? 0.0f : base[r];
#pragma unroll
    for (int i = 0; i < n; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float low = exp2_approx(s[i][j][2 * r] - base[r]);
          const float high = exp2_approx(s[i][j][2 * r + 1] - base[r]);
          total[r] += low + high;
          weights[i][2 * j + r] = pack<Matrix>(low, high);
        }
      }
    }
  }

  // Most blocks bring no row a new maximum, and this is skipped.
  __device__ void rescale(const float (&most)[2]) {
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      factor[r] = maximum[r] == -INFINITY ? 0.0f : exp2_approx(maximum[r] - most[r]);
      maximum[r] = most[r];
      total[r] *= factor[r];
    }
#pragma unroll
    for (auto& column : sums) {
#pragma unroll
      for (int j = 0; j < 4; ++j) column[j] *= factor[j / 2];
    }
  }

  template <int n>
  __device__ void add_values(const uint32_t (&weights)[n][4], const uint32_t (&v)[n]) {
    if constexpr (S::fp8) {
#pragma unroll
      for (int step = 0; step < kSumSteps; step += 2) {
#pragma unroll
        for (int i = 0; i < n; ++i) {
          uint32_t m[4];
          load_matrices_transposed(m, further_in_row<S>(v[i], value_byte(i) + step * 16));
          add_fp8(weights[i], m[0], m[1], step);
          if (step + 1 < kSumSteps) add_fp8(weights[i], m[2], m[3], step + 1);
        }
      }
    } else {
#pragma unroll
      for (int step = 0; step < kSumSteps; ++step) {
#pragma unroll
        for (int i = 0; i < n; ++i) {
          uint32_t m[4];
          load_matrices_transposed(m, further_in_row<S>(v[i], value_byte(i) + step * 32));
          multiply_add<Matrix>(sums[2 * step], weights[i], m[0], m[1]);
          multiply_add<Matrix>(sums[2 * step + 1], weights[i], m[2], m[3]);
        }
      }
    }
  }

  // 16 columns of fp8 values of keys 0 to 7 and 8 to 15. A register has two columns of two keys:
  // the even columns make one product, the odd ones another.
  __device__ void add_fp8(const uint32_t (&weights)[4], uint32_t low, uint32_t high, int step) {
    low = __byte_perm(low, 0, 0x3120);
    high = __byte_perm(high, 0, 0x3120);
    multiply_add<Matrix>(sums[2 * step], weights, halves_of_fp8<KV>(low), halves_of_fp8<KV>(high));
    multiply_add<Matrix>(sums[2 * step + 1], weights, halves_of_fp8<KV>(low >> 16),
                         halves_of_fp8<KV>(high >> 16));
  }

  uint32_t queries_[S::shares_queries ? 1 : kSteps][4];
  const T* query_[2];  // of the lane's rows; null: nobody's
  int head_[2], top_;  // `top_`: the first row's position
  bool any_below_;
  char* const shared_queries_;
  const int in_team_;
  uint32_t query_row_;
  RowPair rows_;
  float scale_[S::warp_heads];
};

}  // namespace mainboard::cuda
