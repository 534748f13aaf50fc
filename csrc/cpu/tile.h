// Attention for many query rows at once (prefill): queries lie in the lanes.
//
// Both products are taken transposed, S^T = K Q^T and O^T = V^T P^T, as in FlashAttention's online
// softmax but with a key's row broadcast against a panel of queries. K and V are then read as they
// are stored, only widened; the maximum and the sum of a query's scores are lane-wise; and Q is
// transposed once for the whole block.
#pragma once

#include "csrc/cpu/rows.h"

namespace mainboard::cpu::MAINBOARD_ISA {

// A panel is up to kPanelVecs vectors of queries; kAccumulators and their operands fill the
// registers.
#if defined(__AVX512F__)
constexpr int kPanelVecs = 3, kAccumulators = 24, kBlockRows = 192;
#else
constexpr int kPanelVecs = 3, kAccumulators = 12, kBlockRows = 192;
#endif
constexpr int kPanel = kPanelVecs * kLanes;
// One block's queries, outputs, keys and values stay within the second-level cache.
constexpr int kPanelsPerBlock = kBlockRows / kPanel;
constexpr int kBlockKeys = 128;
constexpr int kKeyStep = 8;

// C[r][:] = C[r][:] * keep + sum_k a[r * row + k * step] * B[k][:], for R rows of NV vectors.
// B and C have kPanel columns. Without `keep`, C is overwritten.
template <int R, int NV>
inline void multiply_rows(int depth, const float* a, int64_t row, int64_t step, const float* b,
                          const Vec* keep, float* c) {
  Vec acc[R][NV];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      acc[r][v] = keep == nullptr ? zero() : load(c + r * kPanel + v * kLanes) * keep[v];
    }
  }
  for (int k = 0; k < depth; ++k, a += step, b += kPanel) {
    Vec operand[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) operand[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec scalar = set1(a[r * row]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] = fma(scalar, operand[v], acc[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(c + r * kPanel + v * kLanes, acc[r][v]);
  }
}

// The same for any number of rows.
template <int NV>
inline void multiply(int rows, int depth, const float* a, int64_t row, int64_t step, const float* b,
                     const Vec* keep, float* c) {
  constexpr int kWide = kAccumulators / NV > 8 ? 8 : kAccumulators / NV;
  int r = 0;
  for (; r + kWide <= rows; r += kWide) {
    multiply_rows<kWide, NV>(depth, a + r * row, row, step, b, keep, c + r * kPanel);
  }
  if constexpr (kWide > 4) {
    for (; r + 4 <= rows; r += 4) {
      multiply_rows<4, NV>(depth, a + r * row, row, step, b, keep, c + r * kPanel);
    }
  }
  for (; r < rows; ++r) {
    multiply_rows<1, NV>(depth, a + r * row, row, step, b, keep, c + r * kPanel);
  }
}

// The running state of one panel of queries.
struct Panel {
  int vecs;                             // vectors in use
  float* q;                             // [head_dim][kPanel], scaled
  float* o;                             // [value_dim][kPanel]
  float peak[kPanel], sum[kPanel];      // of the scores seen so far
  float slope[kPanel];                  // ALiBi
  int64_t position[kPanel];             // of each query among the keys
  int64_t first[kPanel], last[kPanel];  // keys each query sees
  Span any, all;                        // seen by some query, by every query
};

// The row that a lane of the panel beginning at `row` holds, as token and head. Lanes past the last
// row repeat it; their results are not read.
struct LaneRow {
  int64_t token, head;
};
inline LaneRow lane_row(const Attention& a, const WorkItem& w, int64_t row, int64_t rows,
                        int lane) {
  const int64_t r = row + (lane < rows ? lane : rows - 1);
  return {w.query_begin + r / a.group, w.first_head + r % a.group};
}

// Everything of a panel but its queries.
inline void begin_panel(const Attention& a, const WorkItem& w, int64_t row, int64_t rows,
                        Panel& p) {
  const int64_t shift = w.sequence.keys - w.sequence.queries;
  p.vecs = static_cast<int>((rows + kLanes - 1) / kLanes);
  p.any = {kUnbounded, -kUnbounded};
  p.all = {-kUnbounded, kUnbounded};
  for (int lane = 0; lane < p.vecs * kLanes; ++lane) {
    const LaneRow at = lane_row(a, w, row, rows, lane);
    p.peak[lane] = -INFINITY;
    p.sum[lane] = 0.0f;
    p.slope[lane] = a.alibi_slopes == nullptr ? 0.0f : a.alibi_slopes[at.head];
    p.position[lane] = at.token + shift;
    const Span span = visible(a, w, at.token + shift);
    p.first[lane] = span.first;
    p.last[lane] = span.last;
    p.any.first = span.first < p.any.first ? span.first : p.any.first;
    p.any.last = span.last > p.any.last ? span.last : p.any.last;
    p.all.first = span.first > p.all.first ? span.first : p.all.first;
    p.all.last = span.last < p.all.last ? span.last : p.all.last;
  }
  std::memset(p.o, 0, sizeof(float) * a.value_dim * kPanel);
}

inline void load_queries(const Attention& a, const WorkItem& w, int64_t row, int64_t rows,
                         float* line, Panel& p) {
  const float scale = score_scale(a, w.kv_head);
  const int dim = static_cast<int>(a.head_dim);
  for (int lane = 0; lane < p.vecs * kLanes; ++lane) {
    const LaneRow at = lane_row(a, w, row, rows, lane);
    widen_row(a.q.dtype, a.q.at(w.sequence.query_begin + at.token, 0, at.head), line, dim);
    for (int d = 0; d < dim; ++d) p.q[d * kPanel + lane] = line[d] * scale;
  }
}

inline bool partly_hidden(const Panel& p, int64_t key, int n) {
  return p.all.first > key || p.all.last < key + n - 1;
}

// Softcap, ALiBi and the mask on the scores of keys [key, key + n).
template <int NV>
inline void shape_scores(const Attention& a, const Panel& p, int64_t key, int n, float* scores) {
  if (a.softcap > 0.0f) {
    const Vec cap = set1(a.softcap), inverse = set1(1.0f / a.softcap);
    for (int i = 0; i < n; ++i) {
      for (int v = 0; v < NV; ++v) {
        float* s = scores + i * kPanel + v * kLanes;
        store(s, cap * tanh(load(s) * inverse));
      }
    }
  }
  if (a.alibi_slopes != nullptr) {
    for (int v = 0; v < NV; ++v) {
      float lane[kLanes];
      for (int j = 0; j < kLanes; ++j)
        lane[j] = static_cast<float>(p.position[v * kLanes + j] - key);
      const Vec position = load(lane), slope = load(p.slope + v * kLanes);
      for (int i = 0; i < n; ++i) {
        float* s = scores + i * kPanel + v * kLanes;
        store(s, load(s) - slope * abs(position - set1(static_cast<float>(i))));
      }
    }
  }
  if (partly_hidden(p, key, n)) {
    const Vec hidden = set1(-INFINITY);
    for (int v = 0; v < NV; ++v) {
      float low[kLanes], high[kLanes];
      for (int j = 0; j < kLanes; ++j) {
        low[j] = static_cast<float>(clamp(p.first[v * kLanes + j] - key, -1, n));
        high[j] = static_cast<float>(clamp(p.last[v * kLanes + j] - key, -1, n));
      }
      const Vec first = load(low), last = load(high);
      for (int i = 0; i < n; ++i) {
        float* s = scores + i * kPanel + v * kLanes;
        const Vec index = set1(static_cast<float>(i));
        store(s, select_le(first, index, select_le(index, last, load(s), hidden), hidden));
      }
    }
  }
}

// Turns scores into exp(scale * score - peak), moves peak and sum on, and says by what to keep the
// output. The scale is not negative.
template <int NV>
inline void soften(Panel& p, int n, float scale, float* scores, Vec* keep) {
  for (int v = 0; v < NV; ++v) {
    float* column = scores + v * kLanes;
    const Vec before = load(p.peak + v * kLanes);
    const Vec factor = set1(scale);
    Vec top = set1(-INFINITY);
    for (int i = 0; i < n; ++i) top = max(top, load(column + i * kPanel));
    const Vec peak = max(before, top * factor);
    // A query that has seen no key yet has peak -inf; any finite reference gives it zeros.
    const Vec reference = select_le(set1(-3.0e38f), peak, peak, zero());
    Vec sum = zero();
    for (int i = 0; i < n; ++i) {
      const Vec e = exp_nonpositive(fma(load(column + i * kPanel), factor, zero() - reference));
      store(column + i * kPanel, e);
      sum = sum + e;
    }
    keep[v] = exp_nonpositive(before - reference);
    store(p.peak + v * kLanes, peak);
    store(p.sum + v * kLanes, fma(load(p.sum + v * kLanes), keep[v], sum));
  }
}

template <int NV>
inline void attend_panel(const Attention& a, Panel& p, int64_t key, int n, const float* k,
                         const float* v, float* scores) {
  const int dim = static_cast<int>(a.head_dim), value_dim = static_cast<int>(a.value_dim);
  Vec keep[NV];
  multiply<NV>(n, dim, k, dim, 1, p.q, nullptr, scores);
  shape_scores<NV>(a, p, key, n, scores);
  soften<NV>(p, n, 1.0f, scores, keep);
  multiply<NV>(value_dim, n, v, 1, value_dim, scores, keep, p.o);
}

// Whether some query of the panel sees one of the keys [key, key + n).
inline bool sees(const Panel& p, int64_t key, int n) {
  return p.any.last >= key && p.any.first < key + n;
}

// Writes every row of a work item; `line` holds one of them meanwhile.
inline void finish_panels(const Attention& a, const WorkItem& w, const Panel* panels, float* line) {
  const int64_t rows = (w.query_end - w.query_begin) * a.group;
  for (int64_t row = 0; row < rows; ++row) {
    const Panel& p = panels[row / kPanel];
    const int lane = static_cast<int>(row % kPanel);
    for (int64_t d = 0; d < a.value_dim; ++d) line[d] = p.o[d * kPanel + lane];
    finish_row(a, w, row, line, p.peak[lane], p.sum[lane]);
  }
}

inline void widen_keys(const Attention& a, const WorkItem& w, const Rows& rows, int64_t key, int n,
                       int dim, float* to) {
  const char* stored[kBlockKeys];
  key_rows(rows, w.sequence, a.page_size, key, w.kv_head, n, stored);
  with_type(rows.dtype, [&](auto* type) {
    for (int i = 0; i < n; ++i) {
      widen(reinterpret_cast<decltype(type)>(const_cast<char*>(stored[i])), to + i * dim, dim);
    }
  });
}

inline int64_t tile_scratch_floats(const Attention& a) {
  const int64_t state = kPanelsPerBlock * kPanel * (a.head_dim + a.value_dim);
  const int64_t line = a.head_dim > a.value_dim ? a.head_dim : a.value_dim;
  return state + kBlockKeys * (a.head_dim + a.value_dim + kPanel) + line + kLanes;
}

// Attends one work item of at most kPanelsPerBlock panels of rows.
inline void attend_tiled(const Attention& a, const WorkItem& w, float* scratch) {
  const int dim = static_cast<int>(a.head_dim), value_dim = static_cast<int>(a.value_dim);
  float* k = scratch;
  float* v = k + kBlockKeys * dim;
  float* scores = v + kBlockKeys * value_dim;
  float* state = scores + kBlockKeys * kPanel;
  float* line = state + kPanelsPerBlock * kPanel * (dim + value_dim);

  const int64_t rows = (w.query_end - w.query_begin) * a.group;
  const int panels = static_cast<int>((rows + kPanel - 1) / kPanel);
  Panel panel[kPanelsPerBlock];
  for (int i = 0; i < panels; ++i) {
    panel[i].q = state + i * kPanel * (dim + value_dim);
    panel[i].o = panel[i].q + kPanel * dim;
    const int64_t left = rows - i * kPanel;
    const int64_t in_panel = left < kPanel ? left : kPanel;
    begin_panel(a, w, i * kPanel, in_panel, panel[i]);
    load_queries(a, w, i * kPanel, in_panel, line, panel[i]);
  }

  for (int64_t key = w.key_begin; key < w.key_end; key += kBlockKeys) {
    const int n = static_cast<int>(clamp(w.key_end - key, 0, kBlockKeys));
    widen_keys(a, w, a.k, key, n, dim, k);
    widen_keys(a, w, a.v, key, n, value_dim, v);
    for (int i = 0; i < panels; ++i) {
      Panel& p = panel[i];
      if (!sees(p, key, n)) continue;
      // Only the keys that some query sees, in whole steps of the product's rows.
      const int64_t skip = clamp(p.any.first - key, 0, n) / kKeyStep * kKeyStep;
      const int seen = static_cast<int>(clamp(p.any.last + 1 - key, 0, n) - skip);
      const float *first_k = k + skip * dim, *first_v = v + skip * value_dim;
      if (p.vecs == 1) {
        attend_panel<1>(a, p, key + skip, seen, first_k, first_v, scores);
      } else if (p.vecs == 2) {
        attend_panel<2>(a, p, key + skip, seen, first_k, first_v, scores);
      } else if constexpr (kPanelVecs > 2) {
        attend_panel<3>(a, p, key + skip, seen, first_k, first_v, scores);
      }
    }
  }

  finish_panels(a, w, panel, line);
}

}  // namespace mainboard::cpu::MAINBOARD_ISA
