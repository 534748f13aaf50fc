// One instruction set's kernels for caches and partial results, compiled like isa.cpp.
#include "csrc/cpu/cache_kernels.h"
#include "csrc/cpu/rows.h"

namespace mainboard::cpu::MAINBOARD_ISA {

static char* row(const HeadRows& rows, int64_t head, int64_t token = 0) {
  return rows.data + (token * rows.token + head * rows.head) * size_of(rows.dtype);
}

// Vectors that are stored around the caches, where the processor has such stores.
#if defined(__AVX512F__)
constexpr int64_t kStreamBytes = 64;
static void stream(char* to, const char* from) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
}
static void settle() { _mm_sfence(); }
#elif defined(__AVX2__)
constexpr int64_t kStreamBytes = 32;
static void stream(char* to, const char* from) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to),
                      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
static void settle() { _mm_sfence(); }
#else
constexpr int64_t kStreamBytes = 0;
static void stream(char*, const char*) {}
static void settle() {}
#endif

// Whether a row begins and ends where lines do, so that no line is written in two parts.
static bool can_stream(const char* to, int64_t bytes) {
  constexpr uintptr_t kLine = 64;
  return kStreamBytes > 0 &&
         (reinterpret_cast<uintptr_t>(to) | static_cast<uintptr_t>(bytes)) % kLine == 0;
}

static void copy_row(char* to, const char* from, int64_t bytes, bool streamed) {
  if (!streamed || !can_stream(to, bytes)) {
    std::memcpy(to, from, bytes);
    return;
  }
  for (int64_t i = 0; i < bytes; i += kStreamBytes) stream(to + i, from + i);
}

static void copy(const HeadRows& from, const HeadRows& to, int64_t heads, int64_t n,
                 const float* factors, int64_t factor_stride, bool streamed) {
  if (from.dtype == to.dtype) {
    const int64_t bytes = n * size_of(to.dtype);
    if (from.head == n && to.head == n) {
      copy_row(to.data, from.data, heads * bytes, streamed);
      return;
    }
    for (int64_t h = 0; h < heads; ++h) copy_row(row(to, h), row(from, h), bytes, streamed);
    return;
  }
  constexpr int kChunk = 256;
  float line[kChunk];
  for (int64_t h = 0; h < heads; ++h) {
    const float factor = factors == nullptr ? 1.0f : factors[h * factor_stride];
    for (int64_t i = 0; i < n; i += kChunk) {
      const int count = static_cast<int>(n - i < kChunk ? n - i : kChunk);
      widen_row(from.dtype, row(from, h) + i * size_of(from.dtype), line, count);
      narrow_row(line, factor, to.dtype, row(to, h) + i * size_of(to.dtype), count);
    }
  }
}

// Weights of both parts, of some tokens and heads.
constexpr int kMergedHeads = 32;
struct MergeWeights {
  float a[kMergedTokens][kMergedHeads], b[kMergedTokens][kMergedHeads];
};

// The natural logarithm of 1 <= x <= 2, through that of (1 + t) / (1 - t); -inf of 0, NaN of NaN.
// The first term left out is under 1e-8 of the result.
static Vec log_of_sum(Vec x) {
  const Vec one = set1(1.0f), t = (x - one) / (x + one), square = t * t;
  Vec p = set1(1.0f / 13);
  for (int odd = 11; odd >= 1; odd -= 2) p = fma(p, square, set1(1.0f / static_cast<float>(odd)));
  return select_le(x, zero(), set1(-INFINITY), p * (t + t));
}

// Those of one head, tokens in the lanes; writes the log-sum-exp of both parts.
static void weigh(const HeadScores& a_lse, const HeadScores& b_lse, const HeadScores& out_lse,
                  int64_t head, int column, int tokens, MergeWeights* to) {
  static_assert(kMergedTokens % kLanes == 0);
  for (int first = 0; first < tokens; first += kLanes) {
    const int count = tokens - first < kLanes ? tokens - first : kLanes;
    float a[kLanes], b[kLanes], lse[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const int64_t t = first + (i < count ? i : 0);
      a[i] = a_lse.data[head * a_lse.head + t * a_lse.token];
      b[i] = b_lse.data[head * b_lse.head + t * b_lse.token];
    }
    const Vec top = max(load(a), load(b));
    // Nothing anywhere, or NaN: a finite reference, so that the sum says which.
    const Vec finite = select_le(set1(-3.0e38f), top, top, zero());
    const Vec a_part = exp_nonpositive(load(a) - finite),
              b_part = exp_nonpositive(load(b) - finite);
    const Vec sum = a_part + b_part;
    // One of the parts is 1, so the sum is between 1 and 2 wherever there is one.
    store(lse, finite + log_of_sum(sum));
    float a_weight[kLanes], b_weight[kLanes];
    store(a_weight, a_part / sum);
    store(b_weight, b_part / sum);
    for (int i = 0; i < count; ++i) {
      to->a[first + i][column] = a_weight[i];
      to->b[first + i][column] = b_weight[i];
      if (out_lse.data == nullptr) continue;
      out_lse.data[head * out_lse.head + (first + i) * out_lse.token] = lse[i];
    }
  }
}

// to = x * weight, or 0 where there is no x.
template <class T>
static void keep_one(const T* x, float weight, T* to, int n) {
  for (int i = 0; i < n; i += kLanes) {
    const int count = n - i < kLanes ? n - i : kLanes;
    const Vec row = x == nullptr ? zero() : load_partial(x + i, count) * set1(weight);
    store_partial(to + i, row, count);
  }
}

template <class T>
static void mix(const T* a, float a_weight, const T* b, float b_weight, T* out, int n) {
  const Vec first = set1(a_weight), second = set1(b_weight);
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    // The rows of one token's heads lie one behind another, and then those of the next token.
    constexpr int kAhead = 2048 / sizeof(T);
    __builtin_prefetch(a + i + kAhead);
    __builtin_prefetch(b + i + kAhead);
    store(out + i, fma(load(a + i), first, load(b + i) * second));
  }
  if (i < n) {
    const Vec x = load_partial(a + i, n - i) * first;
    store_partial(out + i, fma(load_partial(b + i, n - i), second, x), n - i);
  }
}

template <class T>
static void merge_rows_of(const HeadRows& a, const HeadScores& a_lse, const HeadRows& b,
                          const HeadScores& b_lse, const HeadRows& out, const HeadScores& out_lse,
                          int64_t tokens, int64_t heads, int n, bool streamed) {
  constexpr int kMostStreamed = 512;
  alignas(64) T line[kMostStreamed];
  streamed = streamed && n <= kMostStreamed;
  MergeWeights weights;
  // What is not to be read, before `out_lse`, which may be a part's, says so no more.
  bool no_a[kMergedTokens][kMergedHeads], no_b[kMergedTokens][kMergedHeads];
  for (int64_t h = 0; h < heads; h += kMergedHeads) {
    const int count = static_cast<int>(heads - h < kMergedHeads ? heads - h : kMergedHeads);
    for (int i = 0; i < count; ++i) {
      for (int t = 0; t < tokens; ++t) {
        no_a[t][i] = a_lse.data[(h + i) * a_lse.head + t * a_lse.token] == -INFINITY;
        no_b[t][i] = b_lse.data[(h + i) * b_lse.head + t * b_lse.token] == -INFINITY;
      }
      weigh(a_lse, b_lse, out_lse, h + i, i, static_cast<int>(tokens), &weights);
    }
    for (int t = 0; t < tokens; ++t) {
      for (int i = 0; i < count; ++i) {
        const T* x = reinterpret_cast<const T*>(row(a, h + i, t));
        const T* y = reinterpret_cast<const T*>(row(b, h + i, t));
        T* to = reinterpret_cast<T*>(row(out, h + i, t));
        if (no_a[t][i]) {
          keep_one(no_b[t][i] ? nullptr : y, weights.b[t][i], to, n);
        } else if (no_b[t][i]) {
          keep_one(x, weights.a[t][i], to, n);
        } else {
          mix(x, weights.a[t][i], y, weights.b[t][i], streamed ? line : to, n);
          if (streamed)
            copy_row(row(out, h + i, t), reinterpret_cast<char*>(line), n * sizeof(T), true);
        }
      }
    }
  }
}

static void merge(const HeadRows& a, const HeadScores& a_lse, const HeadRows& b,
                  const HeadScores& b_lse, const HeadRows& out, const HeadScores& out_lse,
                  int64_t tokens, int64_t heads, int64_t n, bool streamed) {
  with_type(out.dtype, [&](auto* type) {
    merge_rows_of<std::remove_pointer_t<decltype(type)>>(a, a_lse, b, b_lse, out, out_lse, tokens,
                                                         heads, static_cast<int>(n), streamed);
  });
  if (streamed) settle();
}

extern const CacheKernels cache_kernels;
const CacheKernels cache_kernels = {copy, settle, merge};

}  // namespace mainboard::cpu::MAINBOARD_ISA
