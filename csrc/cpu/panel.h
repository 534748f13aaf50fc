// A panel of query rows, which lie in the lanes, and what happens to its scores between the two
// products.
#pragma once

#include <type_traits>

#include "csrc/cpu/rows.h"
#include "csrc/cpu/transpose.h"

namespace mainboard::cpu::MAINBOARD_ISA {

constexpr int kPanelVecs = 3;  // most vectors of queries in a panel
constexpr int kPanel = kPanelVecs * kLanes;

// Exponents are scores times kExponents.
constexpr float kExponents = 1.44269504f;

// A panel's peak may stay behind its scores by this exponent: sums and outputs have room for it,
// and an output whose peak stays need not be rescaled.
constexpr float kPeakSlack = 8.0f;

struct Softcap {
  Exp2<5> exp2;
  Vec cap, gain;
  Softcap(float limit, float scale)
      : cap(set1(limit)), gain(set1(2.0f * kExponents * scale / limit)) {}
  Vec operator()(Vec product) const { return cap_score(exp2, product * gain, cap, zero()); }
};

// The running state of one panel of queries.
struct Panel {
  int rows, vecs;                       // rows, and vectors of them, in use
  float* q;                             // [words of a query][kPanel]
  float* o;                             // [value_dim][kPanel]
  float peak[kPanel];                   // of the exponents seen so far
  float sum[kPanel];                    // of the weights
  float slope[kPanel];                  // ALiBi
  int64_t position[kPanel];             // of each query among the keys
  int64_t first[kPanel], last[kPanel];  // keys each query sees
  Span any, all;                        // seen by some query, by every query
  int64_t end[kPanelVecs];              // behind the last key that some query of a vector sees
  bool touched, finished;               // whether there is an output yet, and whether it is written
};

// The rows of a work item in turn, as token and head: two divisions for each would take as long as
// reading it.
class RowCursor {
 public:
  RowCursor(const Attention& a, const WorkItem& w, int64_t row)
      : token(w.query_begin + row / a.group),
        head(w.first_head + row % a.group),
        first_head_(w.first_head),
        end_(w.first_head + a.group) {}
  void next() {
    if (++head < end_) return;
    head = first_head_;
    ++token;
  }
  int64_t token, head;

 private:
  int64_t first_head_, end_;
};

// Everything of a panel but its queries and outputs. Lanes past the last row repeat it; their
// results are not read.
inline void begin_panel(const Attention& a, const WorkItem& w, int64_t row, int64_t rows,
                        Panel& p) {
  const int64_t shift = w.sequence.keys - w.sequence.queries;
  p.rows = static_cast<int>(rows);
  p.vecs = static_cast<int>((rows + kLanes - 1) / kLanes);
  p.any = {kUnbounded, -kUnbounded};
  p.all = {-kUnbounded, kUnbounded};
  p.touched = p.finished = false;
  for (int64_t& end : p.end) end = 0;
  RowCursor at(a, w, row);
  for (int lane = 0; lane < p.vecs * kLanes; ++lane) {
    p.peak[lane] = -INFINITY;
    p.sum[lane] = 0.0f;
    p.slope[lane] = a.alibi_slopes == nullptr ? 0.0f : a.alibi_slopes[at.head];
    p.position[lane] = at.token + shift;
    const Span span = visible(a, w, at.token + shift);
    p.first[lane] = span.first;
    p.last[lane] = span.last;
    int64_t& end = p.end[lane / kLanes];
    end = span.last + 1 > end ? span.last + 1 : end;
    p.any.first = span.first < p.any.first ? span.first : p.any.first;
    p.any.last = span.last > p.any.last ? span.last : p.any.last;
    p.all.first = span.first > p.all.first ? span.first : p.all.first;
    p.all.last = span.last < p.all.last ? span.last : p.all.last;
    if (lane + 1 < rows) at.next();
  }
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
    const Softcap capped(a.softcap, scale);
    change_scores<NV>(n, scores, [&](Vec s, float, int) { return capped(s); });
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

// The highest of n scores for each query. Two chains a vector, so that none waits for itself.
template <int NV>
inline void peaks(int n, const float* scores, Vec* top) {
  Vec odd[NV];
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) top[v] = odd[v] = set1(-INFINITY);
  int i = 0;
  for (; i + 2 <= n; i += 2, scores += 2 * kPanel) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      top[v] = max(top[v], load(scores + v * kLanes));
      odd[v] = max(odd[v], load(scores + kPanel + v * kLanes));
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) {
    if (i < n) odd[v] = max(odd[v], load(scores + v * kLanes));
    top[v] = max(top[v], odd[v]);
  }
}

// Turns scores into the words of their weights, exp(scale * score - peak), and moves peak and sum
// on. `n` is whole words. Says whether some peak moved; `keep` is then what remains of the output.
template <class Format, int NV>
inline bool soften(Panel& p, int n, float scale, float* scores, Vec* keep) {
  const Vec factor = set1(scale * kExponents);
  const Exp2<Format::kExponentialPowers> exp2;
  Vec highest[NV];
  peaks<NV>(n, scores, highest);
  Vec moved = zero();
  for (int v = 0; v < NV; ++v) {
    float* column = scores + v * kLanes;
    const Vec before = load(p.peak + v * kLanes);
    const Vec top = highest[v] * factor;
    const Vec enough = before + set1(kPeakSlack);
    const Vec peak = select_le(top, enough, before, max(before, top));
    moved = moved + select_le(top, enough, zero(), set1(1.0f));
    // A query that has seen no key yet has peak -inf; any finite reference gives it zeros.
    const Vec reference = select_le(set1(-3.0e38f), peak, peak, zero());
    Vec sum = zero();
    for (int i = 0; i < n; i += Format::kPack) {
      Vec e[Format::kPack];
#pragma GCC unroll 2
      for (int j = 0; j < Format::kPack; ++j) {
        const Vec s = load(column + (i + j) * kPanel);
        e[j] = exp2(fma(s, factor, zero() - reference));
        sum = sum + e[j];
      }
      store(column + i / Format::kPack * kPanel, Format::pack(e));
    }
    // One where it is one: what it is off by would be repeated with every block.
    keep[v] = select_le(top, enough, set1(1.0f), exp2(before - reference));
    store(p.peak + v * kLanes, peak);
    store(p.sum + v * kLanes, fma(load(p.sum + v * kLanes), keep[v], sum));
  }
  return reduce_add(moved) > 0.0f;
}

// Writes the rows of one vector of a panel, the item's from `row` on.
template <class T>
inline void write_rows(const RowEnd* end, int rows, Vec weight, const float* o, int dim) {
  for (int d = 0; d < dim; d += kLanes) {
    const int here = dim - d;
    transpose([&](int i) { return load(o + (d + i) * kPanel) * weight; },
              [&](int j, Vec x) {
                if (j >= rows) return;
                T* to = reinterpret_cast<T*>(end[j].to) + d;
                if (here >= kLanes) return store(to, x);
                store_partial(to, x, here);
              });
  }
}

// Writes the rows of a panel, whose first is the item's `row`.
inline void finish_panel(const Attention& a, const WorkItem& w, int64_t row, Panel& p) {
  if (!p.touched) std::memset(p.o, 0, sizeof(float) * whole_vecs(a.value_dim) * kPanel);
  RowCursor at(a, w, row);
  for (int first = 0; first < p.rows; first += kLanes) {
    const int lanes = p.rows - first < kLanes ? p.rows - first : kLanes;
    RowEnd end[kLanes];
    float weight[kLanes] = {};
    for (int j = first; j < first + lanes; ++j, at.next()) {
      const float peak = p.peak[j] * (1.0f / kExponents);
      end[j - first] = end_row(a, w, row + j, at.token, at.head, peak, p.sum[j]);
      weight[j - first] = end[j - first].weight;
    }
    with_type(end[0].dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      write_rows<T>(end, lanes, load(weight), p.o + first, static_cast<int>(a.value_dim));
    });
  }
  p.finished = true;
}

}  // namespace mainboard::cpu::MAINBOARD_ISA
