// Moving rows between their stored type and float32, and what both attention kernels share.
#pragma once

#include "csrc/cpu/exponential.h"
#include "csrc/cpu/kernels.h"

namespace mainboard::cpu::MAINBOARD_ISA {

// Calls `body(static_cast<T*>(nullptr))` with the element type that `dtype` names.
template <class Body>
inline void with_type(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::f32:
      return body(static_cast<float*>(nullptr));
    case DType::f16:
      return body(static_cast<Float16*>(nullptr));
    case DType::bf16:
      return body(static_cast<BFloat16*>(nullptr));
    case DType::e4m3:
      return body(static_cast<Float8E4M3*>(nullptr));
    case DType::e5m2:
      return body(static_cast<Float8E5M2*>(nullptr));
    case DType::i8:
      return body(static_cast<Int8*>(nullptr));
    default:
      return;  // integers are refused before a kernel is called
  }
}

inline void widen_row(DType dtype, const char* from, float* to, int n) {
  with_type(dtype, [&](auto* type) {
    widen(reinterpret_cast<decltype(type)>(const_cast<char*>(from)), to, n);
  });
}
inline void narrow_row(const float* from, float factor, DType dtype, char* to, int n) {
  with_type(dtype,
            [&](auto* type) { narrow(from, factor, reinterpret_cast<decltype(type)>(to), n); });
}

// Where keys [position, position + n) of a sequence are stored, for one head.
inline void key_rows(const Rows& rows, const Sequence& s, int64_t page_size, int64_t position,
                     int64_t head, int n, const char** to) {
  if (n <= 0) return;
  const bool dense = s.pages == nullptr;
  const int64_t stride = (dense ? rows.outer : rows.inner) * size_of(rows.dtype);
  if (dense) page_size = kUnbounded;
  int64_t page = position / page_size, slot = position % page_size;
  for (int i = 0; i < n; ++page, slot = 0) {
    const char* row =
        dense ? rows.at(s.key_begin + slot, 0, head) : rows.at(s.pages[page], slot, head);
    const int64_t left = page_size - slot;
    const int end = left < n - i ? i + static_cast<int>(left) : n;
    for (; i < end; ++i, row += stride) to[i] = row;
  }
}

// The scale of a query head's scores: the softmax scale and the cache's, in one factor.
inline float score_scale(const Attention& a, int64_t kv_head) {
  return a.k_scale == nullptr ? a.scale : a.scale * a.k_scale[kv_head * a.k_scale_stride];
}
inline float value_scale(const Attention& a, int64_t kv_head) {
  return a.v_scale == nullptr ? 1.0f : a.v_scale[kv_head * a.v_scale_stride];
}

inline int64_t clamp(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : (x > high ? high : x);
}

// The keys [first, last] that the query at `position` may see; empty when last < first.
struct Span {
  int64_t first, last;
};
inline Span visible(const Attention& a, const WorkItem& w, int64_t position) {
  const int64_t first = position - a.left, last = position + w.sequence.right;
  return {first < w.key_begin ? w.key_begin : first, last >= w.key_end ? w.key_end - 1 : last};
}

inline float exp_scalar(float x) {
  float lane[kLanes];
  store(lane, exp_nonpositive(set1(x)));
  return lane[0];
}

// Where a finished row goes, and what its output is multiplied with on the way.
struct RowEnd {
  char* to;
  DType dtype;
  float weight;
};

// Ends row `row` of an item, that of a token and a head: `sum` is of exp(score - peak). Writes the
// log-sum-exp and says what to do with the weighted values.
inline RowEnd end_row(const Attention& a, const WorkItem& w, int64_t row, int64_t token,
                      int64_t head, float peak, float sum) {
  const int64_t dim = a.value_dim;
  if (w.partial != nullptr) {
    float* part = w.partial + row * (dim + 1);
    part[dim] = sum == 0.0f ? -INFINITY : peak + std::log(sum);
    const float weight = sum > 0.0f ? 1.0f / sum : (sum == sum ? 0.0f : sum);
    return {reinterpret_cast<char*>(part), DType::f32, weight};
  }
  float factor = 1.0f;
  if (a.sinks != nullptr) {  // one more score, which brings no value
    const float sink = a.sinks[head], top = peak > sink ? peak : sink;
    factor = sum == 0.0f ? 0.0f : exp_scalar(peak - top);
    sum = sum * factor + exp_scalar(sink - top);
    peak = top;
  }
  const int64_t index = w.sequence.query_begin + token;
  if (a.lse != nullptr) {
    a.lse[head * a.lse_stride + index] = sum == 0.0f ? -INFINITY : peak + std::log(sum);
  }
  const float weight = sum == 0.0f ? 0.0f : factor * value_scale(a, w.kv_head) / sum;
  return {a.out.at(index, 0, head), a.out.dtype, weight};
}

// Writes one finished row whose weighted values are `output`. `row` counts token-major, heads of
// the group inner.
inline void finish_row(const Attention& a, const WorkItem& w, int64_t row, const float* output,
                       float peak, float sum) {
  const RowEnd end =
      end_row(a, w, row, w.query_begin + row / a.group, w.first_head + row % a.group, peak, sum);
  narrow_row(output, end.weight, end.dtype, end.to, static_cast<int>(a.value_dim));
}

}  // namespace mainboard::cpu::MAINBOARD_ISA
