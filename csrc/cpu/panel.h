// A panel of query rows, which lie in the lanes, and what happens to its scores between the two
// products.
#pragma once

#include "csrc/cpu/rows.h"
#include "csrc/cpu/transpose.h"

namespace mainboard::cpu::MAINBOARD_ISA {

constexpr int kPanelVecs = 3;  // most vectors of queries in a panel
constexpr int kPanel = kPanelVecs * kLanes;

// The running state of one panel of queries.
struct Panel {
  int vecs;                             // vectors in use
  float* q;                             // [words of a query][kPanel]
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
  std::memset(p.o, 0, sizeof(float) * whole_vecs(a.value_dim) * kPanel);
}

inline bool partly_hidden(const Panel& p, int64_t key, int n) {
  return p.all.first > key || p.all.last < key + n - 1;
}

// Whether some query of the panel sees one of the keys [key, key + n).
inline bool sees(const Panel& p, int64_t key, int n) {
  return p.any.last >= key && p.any.first < key + n;
}

// Replaces every score of keys [key, key + n): `change(score, key's index, vector)`.
template <int NV, class Change>
inline void change_scores(int n, float* scores, Change change) {
  for (int i = 0; i < n; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      float* s = scores + i * kPanel + v * kLanes;
      store(s, change(load(s), static_cast<float>(i), v));
    }
  }
}

template <int NV>
inline void add_linear_bias(const Panel& p, int64_t key, int n, float scale, float* scores) {
  Vec position[NV], slope[NV];
  for (int v = 0; v < NV; ++v) {
    float lane[kLanes];
    for (int j = 0; j < kLanes; ++j) {
      lane[j] = static_cast<float>(p.position[v * kLanes + j] - key);
    }
    position[v] = load(lane);
    slope[v] = zero() - load(p.slope + v * kLanes);
  }
  const Vec factor = set1(scale);
  change_scores<NV>(n, scores, [&](Vec s, float i, int v) {
    return fma(slope[v], abs(position[v] - set1(i)), s * factor);
  });
}

template <int NV>
inline void hide_scores(const Panel& p, int64_t key, int n, float* scores) {
  Vec first[NV], last[NV];
  for (int v = 0; v < NV; ++v) {
    float low[kLanes], high[kLanes];
    for (int j = 0; j < kLanes; ++j) {
      low[j] = static_cast<float>(clamp(p.first[v * kLanes + j] - key, -1, n));
      high[j] = static_cast<float>(clamp(p.last[v * kLanes + j] - key, -1, n));
    }
    first[v] = load(low);
    last[v] = load(high);
  }
  const Vec hidden = set1(-INFINITY);
  change_scores<NV>(n, scores, [&](Vec s, float i, int v) {
    const Vec index = set1(i);
    return select_le(first[v], index, select_le(index, last[v], s, hidden), hidden);
  });
}

// Softcap, ALiBi and the mask on the products of keys [key, key + n), which are scores divided by
// `scale`. Returns what is left to multiply with; it is positive.
template <int NV>
inline float shape_scores(const Attention& a, const Panel& p, int64_t key, int n, float scale,
                          float* scores) {
  if (a.softcap > 0.0f) {
    const Vec cap = set1(a.softcap), inverse = set1(scale / a.softcap);
    change_scores<NV>(n, scores, [&](Vec s, float, int) { return cap * tanh(s * inverse); });
    scale = 1.0f;
  }
  if (a.alibi_slopes != nullptr) {
    add_linear_bias<NV>(p, key, n, scale, scores);
    scale = 1.0f;
  }
  if (!(scale > 0.0f)) {  // the peak of the products is not that of the scores
    const Vec factor = set1(scale);
    change_scores<NV>(n, scores, [&](Vec s, float, int) { return s * factor; });
    scale = 1.0f;
  }
  if (partly_hidden(p, key, n)) hide_scores<NV>(p, key, n, scores);
  return scale;
}

// Turns scores into the words of exp(scale * score - peak), moves peak and sum on, and says by what
// to keep the output. `n` is whole words.
template <class Format, int NV>
inline void soften(Panel& p, int n, float scale, float* scores, Vec* keep) {
  const Vec factor = set1(scale);
  for (int v = 0; v < NV; ++v) {
    float* column = scores + v * kLanes;
    const Vec before = load(p.peak + v * kLanes);
    Vec top = set1(-INFINITY);
    for (int i = 0; i < n; ++i) top = max(top, load(column + i * kPanel));
    const Vec peak = max(before, top * factor);
    // A query that has seen no key yet has peak -inf; any finite reference gives it zeros.
    const Vec reference = select_le(set1(-3.0e38f), peak, peak, zero());
    Vec sum = zero();
    for (int i = 0; i < n; i += Format::kPack) {
      Vec e[Format::kPack];
#pragma GCC unroll 2
      for (int j = 0; j < Format::kPack; ++j) {
        const Vec s = load(column + (i + j) * kPanel);
        e[j] = exp_nonpositive(fma(s, factor, zero() - reference));
        sum = sum + e[j];
      }
      store(column + i / Format::kPack * kPanel, Format::pack(e));
    }
    keep[v] = exp_nonpositive(before - reference);
    store(p.peak + v * kLanes, peak);
    store(p.sum + v * kLanes, fma(load(p.sum + v * kLanes), keep[v], sum));
  }
}

// Writes every row of a work item; `lines` holds kLanes of them meanwhile.
inline void finish_panels(const Attention& a, const WorkItem& w, const Panel* panels,
                          float* lines) {
  const int64_t rows = (w.query_end - w.query_begin) * a.group, line = whole_vecs(a.value_dim);
  for (int64_t row = 0; row < rows; row += kLanes) {
    const Panel& p = panels[row / kPanel];
    const int first = static_cast<int>(row % kPanel);
    for (int64_t d = 0; d < line; d += kLanes) {
      transpose(p.o + d * kPanel + first, kPanel, lines + d, line);
    }
    const int lanes = static_cast<int>(rows - row < kLanes ? rows - row : kLanes);
    for (int j = 0; j < lanes; ++j) {
      finish_row(a, w, row + j, lines + j * line, p.peak[first + j], p.sum[first + j]);
    }
  }
}

}  // namespace mainboard::cpu::MAINBOARD_ISA
