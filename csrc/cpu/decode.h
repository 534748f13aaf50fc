// Decode: a few query rows against one range of keys, of several key heads in one run.
#pragma once

#include "csrc/cpu/dot.h"
#include "csrc/cpu/pairs.h"

// With tiles, pairs of bfloat16 are slower than float32 on every processor known so far.
#if defined(__AVX512BF16__) && defined(__AVX512VBMI__) && !defined(__AMX_BF16__)
#define MAINBOARD_DECODE_IN_PAIRS
#endif

namespace mainboard::cpu::MAINBOARD_ISA {

// What the peak of a row is that has seen nothing: finite, so that nothing minus nothing is no NaN.
constexpr float kNoPeak = -3.0e38f;

struct DotRow {
  float peak, sum, slope;
  int64_t position;
  Span span;
};

// Whether some lane is above; NaN is not.
inline bool any_above(Vec x, float limit) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(x, set1(limit), _CMP_GT_OQ) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps(x, set1(limit), _CMP_GT_OQ)) != 0;
#else
  return reduce_max(x) > limit;
#endif
}

// Softcap, ALiBi, mask and the online softmax on one row's scores of keys [key, key + n); there is
// room for Keys.
template <int Keys>
inline float soften_row(const Attention& a, DotRow& row, int64_t key, int n, float* scores) {
  const int first = static_cast<int>(clamp(row.span.first - key, 0, n));
  const int last = static_cast<int>(clamp(row.span.last - key + 1, first, n));
  for (int i = 0; i < first; ++i) scores[i] = -INFINITY;
  for (int i = last; i < Keys; ++i) scores[i] = -INFINITY;
  if (a.softcap > 0.0f) {
    const Vec cap = set1(a.softcap), inverse = set1(1.0f / a.softcap);
    float capped[Keys];
    for (int i = 0; i < n; i += kLanes) store(capped + i, cap * tanh(load(scores + i) * inverse));
    std::memcpy(scores + first, capped + first, sizeof(float) * (last - first));
  }
  if (a.alibi_slopes != nullptr) {
    for (int i = first; i < last; ++i) {
      scores[i] -= row.slope * std::fabs(static_cast<float>(row.position - key - i));
    }
  }
  Vec top = load(scores);
  for (int i = kLanes; i < n; i += kLanes) top = max(top, load(scores + i));
  // Most blocks do not move the peak, and a test is cheaper than the maximum.
  float keep = 1.0f;
  if (any_above(top, row.peak)) {
    const float peak = reduce_max(top);
    keep = exp_scalar(row.peak - peak);
    row.peak = peak;
  }
  const Vec reference = set1(row.peak);
  Vec sum = zero();
  for (int i = 0; i < n; i += kLanes) {
    const Vec e = exp_nonpositive(load(scores + i) - reference);
    store(scores + i, e);
    sum = sum + e;
  }
  row.sum = row.sum * keep + reduce_add(sum);
  return keep;
}

// How rows are multiplied against keys and values of T: in float32.
template <class T>
struct FloatMath {
  using Query = float;
  static int64_t query_room(int64_t dim) { return dim; }
  static int64_t output_room(int64_t dim) { return dim; }

  static void begin(const Attention& a, const char* from, float scale, float* q) {
    const int dim = static_cast<int>(a.head_dim);
    widen_row(a.q.dtype, from, q, dim);
    narrow(q, scale, q, dim);
    reorder_pairs<T>(q, dim, false);
  }
  static void finish(float* o, int dim) { reorder_pairs<T>(o, dim, true); }

  template <int R>
  static void dot(const Block& block, int dim, const float* q, float, float* scores) {
    dot_scores<R, T>(block, dim, q, scores);
  }
  template <int R>
  static void add(const Block& block, const float* weights, const float* keep, float* o, int dim) {
    add_values<R, T>(block, weights, keep, o, dim);
  }
};

// The rows of one key head: their queries and outputs lie one behind another.
template <class Math>
struct DotRows {
  DotRow* row;
  const typename Math::Query* q;
  float* o;
  float scale;
};

// R rows, from the first'th on, against one block of keys.
template <int R, class Math>
inline void attend_rows(const Attention& a, const Block& block, int64_t key,
                        const DotRows<Math>& rows, int first, float* scores) {
  const int dim = static_cast<int>(a.head_dim), value_dim = static_cast<int>(a.value_dim);
  float keep[R];
  Math::template dot<R>(block, dim, rows.q + first * Math::query_room(dim), rows.scale, scores);
  for (int r = 0; r < R; ++r) {
    keep[r] =
        soften_row<kDotKeys>(a, rows.row[first + r], key, block.now.keys, scores + r * kDotKeys);
  }
  Math::template add<R>(block, scores, keep, rows.o + first * Math::output_room(value_dim),
                        value_dim);
}

template <class Math>
inline void attend_block(const Attention& a, Block block, int64_t key, int count,
                         const DotRows<Math>& rows, float* scores) {
  int r = 0;
  for (; r + 4 <= count; r += 4) {
    attend_rows<4>(a, block, key, rows, r, scores);
    block.next.keys = 0;  // asked for once
  }
  for (; r + 2 <= count; r += 2) {
    attend_rows<2>(a, block, key, rows, r, scores);
    block.next.keys = 0;
  }
  if (r < count) attend_rows<1>(a, block, key, rows, r, scores);
}

// An item's keys in the order of memory: those of a page, head by head, because the heads of a page
// lie side by side, and then the next page's.
class KeyWalk {
 public:
  KeyWalk(const Attention& a, const WorkItem& w)
      : a_(a), w_(w), run_(kDotKeys), begin_(w.key_begin), end_(w.key_begin) {
    if (w.sequence.pages != nullptr && a.page_size > kDotKeys) {
      run_ = a.page_size < kMostKeys ? a.page_size : kMostKeys;
    }
  }
  // The next block's first key and its head within the item, or false. Rows stay valid for two more
  // blocks.
  bool take(KeyRows* rows, int64_t* key, int64_t* head) {
    if (at_ == end_ - begin_) {
      at_ = 0;
      if (++head_ >= w_.kv_heads && !open_run()) {
        rows->keys = 0;
        return false;
      }
    }
    const int left = static_cast<int>(end_ - begin_) - at_;
    *key = begin_ + at_;
    *head = head_;
    *rows = {k_[buffer_] + at_, v_[buffer_] + at_, head_ * a_.k.head * size_of(a_.k.dtype),
             head_ * a_.v.head * size_of(a_.v.dtype), left < kDotKeys ? left : kDotKeys};
    at_ += rows->keys;
    return true;
  }

 private:
  static constexpr int64_t kMostKeys = 128;  // that one head is given before the next head's turn
  static constexpr int kBuffers = 3;

  bool open_run() {
    head_ = 0;
    begin_ = end_;
    if (begin_ >= w_.key_end) return false;
    end_ = clamp((begin_ / run_ + 1) * run_, 0, w_.key_end);
    buffer_ = (buffer_ + 1) % kBuffers;
    const int n = static_cast<int>(end_ - begin_);
    key_rows(a_.k, w_.sequence, a_.page_size, begin_, w_.kv_head, n, k_[buffer_]);
    key_rows(a_.v, w_.sequence, a_.page_size, begin_, w_.kv_head, n, v_[buffer_]);
    return true;
  }

  const Attention& a_;
  const WorkItem& w_;
  int64_t run_, begin_, end_;
  int64_t head_ = kUnbounded;  // so that the first block opens a run
  int at_ = 0, buffer_ = 0;
  const char *k_[kBuffers][kMostKeys], *v_[kBuffers][kMostKeys];
};

template <class Math>
inline void attend_keys(const Attention& a, const WorkItem& w, int rows, const DotRows<Math>& all,
                        float* scores) {
  KeyWalk walk(a, w);
  Block block;
  int64_t key = 0, head = 0;
  for (bool more = walk.take(&block.next, &key, &head); more;) {
    block.now = block.next;
    const int64_t first = head * rows, begin = key;
    const DotRows<Math> one = {all.row + first, all.q + first * Math::query_room(a.head_dim),
                               all.o + first * Math::output_room(a.value_dim),
                               score_scale(a, w.kv_head + head)};
    more = walk.take(&block.next, &key, &head);
    attend_block(a, block, begin, rows, one, scores);
  }
}

inline bool dot_serves(const Attention& a, const WorkItem& w) {
  return (w.query_end - w.query_begin) * a.group <= kDotRows && a.head_dim % kLanes == 0 &&
         a.value_dim % kLanes == 0;
}

inline int64_t dot_scratch_floats(const Attention& a) {
  constexpr int64_t kMostPadding = 64;  // of a row
  return kMostRowsReadTogether * (a.head_dim + a.value_dim + 2 * kMostPadding) +
         kRowsAtOnce * kDotKeys;
}

// Row r of an item's key head h is its row h * rows + r here.
template <class Math>
inline void begin_dot_rows(const Attention& a, const WorkItem& w, int rows, DotRow* row,
                           typename Math::Query* q) {
  for (int64_t i = 0; i < w.kv_heads * rows; ++i) {
    const int64_t kv = i / rows, r = i % rows;
    const int64_t token = w.query_begin + r / a.group;
    const int64_t head = w.first_head + kv * a.group + r % a.group;
    const int64_t position = token + w.sequence.keys - w.sequence.queries;
    Math::begin(a, a.q.at(w.sequence.query_begin + token, 0, head), score_scale(a, w.kv_head + kv),
                q + i * Math::query_room(a.head_dim));
    row[i] = {kNoPeak, 0.0f, a.alibi_slopes == nullptr ? 0.0f : a.alibi_slopes[head], position,
              visible(a, w, position)};
  }
}

template <class Math>
inline void attend_dotted_in(const Attention& a, const WorkItem& w, float* scratch) {
  const int rows = static_cast<int>((w.query_end - w.query_begin) * a.group);
  const int all = static_cast<int>(w.kv_heads) * rows;
  const int value_dim = static_cast<int>(a.value_dim);
  const int64_t room = Math::output_room(value_dim);
  float* scores = scratch;  // first, because it is loaded as whole vectors
  float* o = scores + kRowsAtOnce * kDotKeys;
  auto* q = reinterpret_cast<typename Math::Query*>(o + all * room);
  DotRow row[kMostRowsReadTogether];
  begin_dot_rows<Math>(a, w, rows, row, q);
  std::memset(o, 0, sizeof(float) * all * room);
  attend_keys<Math>(a, w, rows, {row, q, o, 1.0f}, scores);
  for (int64_t h = 0; h < w.kv_heads; ++h) {
    const WorkItem one = one_head(a, w, h);
    for (int r = 0; r < rows; ++r) {
      const int64_t i = h * rows + r;
      Math::finish(o + i * room, value_dim);
      finish_row(a, one, r, o + i * room, row[i].peak, row[i].sum);
    }
  }
}

inline void attend_dotted(const Attention& a, const WorkItem& w, float* scratch) {
  with_type(a.k.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
#if defined(MAINBOARD_DECODE_IN_PAIRS)
    if constexpr (sizeof(T) <= sizeof(BFloat16) && !std::is_same_v<T, Float16>) {
      if (pairs_serve(a)) return attend_dotted_in<PairMath<T>>(a, w, scratch);
    }
#endif
    attend_dotted_in<FloatMath<T>>(a, w, scratch);
  });
}

}  // namespace mainboard::cpu::MAINBOARD_ISA
