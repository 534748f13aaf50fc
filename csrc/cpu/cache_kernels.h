// Moving and joining rows: what crosses from the host code to each instruction set's kernels.
#pragma once

#include <cstdint>

#include "csrc/common/dtype.h"

namespace mainboard::cpu {

// Rows of some tokens and heads, `token` and `head` elements apart.
struct HeadRows {
  char* data;
  DType dtype;
  int64_t token, head;
};

// The log-sum-exps that belong to them; null where there are none.
struct HeadScores {
  float* data;
  int64_t token, head;
};

// Tokens that are joined together, so that their log-sum-exps are read as whole cache lines.
constexpr int64_t kMergedTokens = 16;

// What is written past this many bytes in one call will not be found in a cache by whoever reads
// it, so it is written around the caches: a line that is only written need not be read first.
constexpr int64_t kStreamedBytes = 8 << 20;

struct CacheKernels {
  // Copies one token's rows of n elements. When the formats differ, row h is multiplied by
  // factors[h * factor_stride] and rounded; null is 1. After streamed copies comes `settle`.
  void (*copy)(const HeadRows& from, const HeadRows& to, int64_t heads, int64_t n,
               const float* factors, int64_t factor_stride, bool streamed);
  // Makes what this thread streamed visible to others, in order.
  void (*settle)();
  // out = (a e^a_lse + b e^b_lse) / (e^a_lse + e^b_lse), out_lse the log of that denominator, for
  // at most kMergedTokens. A part whose log-sum-exp is -inf is not read. `out` may be a part.
  void (*merge)(const HeadRows& a, const HeadScores& a_lse, const HeadRows& b,
                const HeadScores& b_lse, const HeadRows& out, const HeadScores& out_lse,
                int64_t tokens, int64_t heads, int64_t n, bool streamed);
};

}  // namespace mainboard::cpu
