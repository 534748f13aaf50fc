// The warpgroups of a prefill kernel that compute.
#pragma once

#include "csrc/cuda/prefill_shape.h"
#include "csrc/cuda/prefill_transform.h"

namespace mainboard::cuda {

template <int n>
using Columns = std::integral_constant<int, n>;

// What a warp knows of its rows of a tile: the keys that they all see, and what becomes of scores.
template <class S>
struct Common {
  int first, last;
  Transform<S::transforms, S::fp8> transform;
};

template <class S>
class Consumer {
 public:
  using T = typename S::T;
  using Control = typename S::Control;
  using Common = mainboard::cuda::Common<S>;

  __device__ Consumer(const Prefill& a, uint32_t shared, Control* control)
      : a_(a),
        shared_(shared),
        control_(control),
        lane_(threadIdx.x % 32),
        group_(uniform(threadIdx.x / kGroupThreads - 1)),
        warp_row_(64 * group_ + 16 * (threadIdx.x % kGroupThreads / 32)) {}

  __device__ void run() {
    if (group_ == S::groups - 1) give_turn();
    first_scores();
    for (;;) {
      const Tile& t = control_->tiles[(tiles_ - 1) % kTilesKnown];
      if (t.sequence == kNoTile) return;
      Softmax<T> softmax;
      if (t.blocks > 0) {
        walk(t, softmax);
        continue;
      }
      release_queries();
#pragma unroll
      for (float& x : sums_) x = 0.0f;
      finish(t, softmax);
      first_scores();
    }
  }

 private:
  static constexpr int kTurns = 1, kTails = kTurns + S::groups;  // named barriers of each group

  __device__ void take_turn() const { named_barrier_sync(kTurns + group_, 2 * kGroupThreads); }
  __device__ void give_turn() const {
    named_barrier_arrive(kTurns + (group_ + 1) % S::groups, 2 * kGroupThreads);
  }

  // The queries of the newest tile that was waited for are needed no longer.
  __device__ void release_queries() {
    release(&control_->q_empty[Turn<S::q_stages>(tiles_ - 1).stage]);
  }

  // Waits for the tile that comes next, and for what its first scores are made of.
  __device__ void wait_for_tile() {
    const Turn<S::q_stages> at(tiles_);
    barrier_wait(&control_->q_full[at.stage], at.parity);
    const bool none = control_->tiles[tiles_++ % kTilesKnown].blocks == 0;
    queries_ = shared_ + at.stage * S::q_bytes + group_ * 64 * kPanelRowBytes;
    if (none) return;
    if constexpr (S::fp8) convert_queries();
    const Turn<S::stages> next(count_);
    barrier_wait(&control_->k_full[next.stage], next.parity);
  }

  // A tile without keys has none, but ptxas needs every product to be in straight code.
  __device__ void first_scores() {
    wait_for_tile();
    begin_products();
    multiply_keys<S::keys>(Turn<S::stages>(count_).stage);
    wait_for_products<0>(scores_);
  }

  // All blocks of a tile, and the next one's first scores.
  __device__ void walk(const Tile& t, Softmax<T>& softmax) {
    const float key_scale = scale_of(a_.k_scale, a_.k_scale_stride, t);
    const Common all{Sight(a_, t, warp_row_ + 15).first,
                     Sight(a_, t, warp_row_).last,
                     {a_, t, warp_row_, lane_, key_scale}};
    const int begin = t.begin, blocks = t.blocks, rest = t.end - begin - (blocks - 1) * S::keys;
    int key = begin + (blocks - 1) * S::keys - (S::keys - rest);  // of the block at hand
    first_block(t, softmax, all, max(key, begin));
    const int whole = blocks - (rest < S::keys);
    int block = 1;
    if constexpr (S::doubled) {
      for (; block + 1 < whole; block += 2) {
        doubled_step(t, softmax, all, key -= S::keys, block, weights_, other_weights_);
        doubled_step(t, softmax, all, key -= S::keys, block + 1, other_weights_, weights_);
      }
    }
    for (; block < whole; ++block) step<S::keys>(t, softmax, all, key -= S::keys, block);
    dispatch<S::grain>(rest, [&](auto columns) {
      constexpr int n = decltype(columns)::value;
      if constexpr (n < S::keys) {
        if (blocks > 1) step<n>(t, softmax, all, begin, blocks - 1);
      }
      last_values<n>(blocks > 1);
    });
    finish_tile(t, softmax);
  }

  // Calls `body` with the number of columns as a constant.
  template <int n, class Body>
  __device__ static void dispatch(int columns, const Body& body) {
    if constexpr (n == S::keys) {
      body(Columns<n>());
    } else {
      if (columns == n) return body(Columns<n>());
      dispatch<n + S::grain>(columns, body);
    }
  }

  __device__ void first_block(const Tile& t, Softmax<T>& softmax, const Common& all, int key) {
    const Turn<S::stages> at(count_);
    release(&control_->k_empty[at.stage]);
    if (t.blocks == 1) release_queries();
    float shrink[2];
    see<S::keys>(t, all, key);
    weigh<S::keys>(t, softmax, all, key, weights_, shrink);
    if (!S::fp8 && t.keys < t.end) {
      barrier_wait(&control_->v_full[at.stage], at.parity);
      clear_values(at.stage, t.keys - key, min(S::keys, t.end - key));
    }
  }

  // The turn in which the scores of n keys from `key` on are made, with the values of the block
  // before, whose weights are `last`.
  template <int n>
  __device__ void multiply(const Tile& t, const Common& all, int key, int block,
                           const uint32_t (&last)[S::keys / 4]) {
    const Turn<S::stages> at(count_), next(++count_);
    barrier_wait(&control_->k_full[next.stage], next.parity);
    barrier_wait(&control_->v_full[at.stage], at.parity);
    take_turn();
    begin_products();
    multiply_keys<n>(next.stage);
    multiply_values<S::keys>(last, at.stage, block > 1);
    give_turn();
    wait_for_products<1>(scores_);
    release(&control_->k_empty[next.stage]);
    see<n>(t, all, key);
    if (key == t.begin) release_queries();
  }
  // Waits for the sums of the block before.
  __device__ void wait_for_values() {
    wait_for_products<0>(sums_);
    release(&control_->v_empty[Turn<S::stages>(count_ - 1).stage]);
  }
  __device__ void shrink_sums(const float (&shrink)[2]) {
    if (__all_sync(0xffffffffu, shrink[0] == 1.0f && shrink[1] == 1.0f)) return;
#pragma unroll
    for (int i = 0; i < S::value_dim / 2; ++i) sums_[i] *= shrink[i / 2 % 2];
  }

  // A block's scores to weights, where those of the block before were.
  template <int n>
  __device__ void step(const Tile& t, Softmax<T>& softmax, const Common& all, int key, int block) {
    multiply<n>(t, all, key, block, weights_);
    wait_for_values();
    if ((n == S::keys || S::transforms) && try_weigh<n>(softmax, all, key, weights_)) return;
    float shrink[2];
    weigh<n>(t, softmax, all, key, weights_, shrink);
    shrink_sums(shrink);
  }
  // The same beside those of the block before, while that one's values are summed. That weights may
  // have to be made again keeps ptxas from moving the wait to before the exponentials.
  __device__ void doubled_step(const Tile& t, Softmax<T>& softmax, const Common& all, int key,
                               int block, const uint32_t (&last)[S::keys / 4],
                               uint32_t (&made)[S::keys / 4]) {
    multiply<S::keys>(t, all, key, block, last);
    float shrink[2] = {1.0f, 1.0f};
    const bool fits = try_weigh<S::keys>(softmax, all, key, made);
    if (!fits) weigh<S::keys>(t, softmax, all, key, made, shrink);
    wait_for_values();
    if (!fits) shrink_sums(shrink);
  }

  // The last block's values.
  template <int n>
  __device__ void last_values(int add) {
    const Turn<S::stages> at(count_);
    barrier_wait(&control_->v_full[at.stage], at.parity);
    take_turn();
    begin_products();
    multiply_values<n>(weights_, at.stage, add);
  }
  // The next tile's first scores, which are made, if there is room for its queries, while this one
  // is written out.
  __device__ void finish_tile(const Tile& t, const Softmax<T>& softmax) {
    const Turn<S::stages> at(count_++);
    if constexpr (S::ahead) {
      wait_for_tile();
      begin_products();
      multiply_keys<S::keys>(Turn<S::stages>(count_).stage);
    }
    give_turn();
    wait_for_products<S::ahead ? 1 : 0>(sums_);
    release(&control_->v_empty[at.stage]);
    finish(t, softmax);
    if constexpr (S::ahead) {
      wait_for_products<0>(scores_);
    } else {
      first_scores();
    }
  }

  // Two queries as halves, which fp8 keys are multiplied with.
  __device__ uint32_t half_query(uint32_t pair) const {
    return a_.bf16 ? halves_of<__nv_bfloat16>(pair) : pair;
  }
  // Turns this group's rows in shared memory into halves.
  __device__ void convert_queries() const {
    if (a_.bf16) {
      for (int i = static_cast<int>(threadIdx.x) % kGroupThreads; i < 64 * kPanelRowBytes / 16;
           i += kGroupThreads) {
#pragma unroll
        for (int p = 0; p < S::panels; ++p) {
          const uint32_t at = queries_ + p * S::q_panel + i * 16;
          const uint4 x = load_shared(at);
          store_shared(at, {half_query(x.x), half_query(x.y), half_query(x.z), half_query(x.w)});
        }
      }
    }
    publish_to_units();
    named_barrier_sync(kTails + group_, kGroupThreads);
  }

  // Sends scores = queries * the first n keys of this stage to the matrix units.
  template <int n>
  __device__ void multiply_keys(int stage) {
#pragma unroll
    for (float& x : scores_) x = 0.0f;  // costs nothing, and says that the last ones are done with
    auto& scores = reinterpret_cast<float (&)[n / 2]>(scores_);
    const uint64_t q = operand_of_rows(queries_);
    const uint64_t k = operand_of_rows(shared_ + S::k_at + stage * S::k_bytes);
#pragma unroll
    for (int step = 0; step < S::dim / 16; ++step) {
      const int panel = step / 4, within = step % 4 * 32;
      Product<T, n>::rows(scores, advanced(q, panel * S::q_panel + within),
                          advanced(k, panel * S::panel + within), step > 0);
    }
    commit_products();
  }
  // Sends sums += weights * the first n values of this stage to them; without `add` the sums start
  // anew.
  template <int n>
  __device__ void multiply_values(const uint32_t (&weights)[S::keys / 4], int stage, int add) {
    const uint64_t v = operand_of_columns(shared_ + S::v_at + stage * S::v_bytes, S::panel);
#pragma unroll
    for (int step = 0; step < n / 16; ++step) {
      Product<T, S::value_dim>::columns(
          sums_, weights + 4 * step, advanced(v, step * 16 * kPanelRowBytes), step > 0 ? 1 : add);
    }
    commit_products();
  }

  // Leaves of n scores from `key` on what the rows see, unless that is done later.
  template <int n>
  __device__ void see(const Tile& t, const Common& all, int key) {
    if constexpr (S::transforms) {
      if (!all.transform.keeps_infinity()) return;
    }
    take_unseen<n>(t, all, key);
  }
  template <int n>
  __device__ void take_unseen(const Tile& t, const Common& all, int key) {
    if (all_seen<n>(all, key)) return;
    mask<n>(scores_, a_, t, warp_row_ + lane_ / 4, key + 2 * (lane_ % 4));
  }
  template <int n>
  __device__ static bool all_seen(const Common& all, int key) {
    return key + n - 1 <= all.last && key >= all.first;
  }

  template <int n, int m>
  __device__ bool try_weigh(Softmax<T>& softmax, const Common& all, int key,
                            uint32_t (&weights)[m]) const {
    if constexpr (S::transforms) {
      return all.transform.template try_weigh<n>(softmax, scores_, weights, key,
                                                 all_seen<n>(all, key));
    } else {
      return softmax.template try_weigh<n>(
          scores_, weights, [&](int, float base) { return Scaled{all.transform.scale, base}; },
          [] { return true; });
    }
  }
  template <int n, int m>
  __device__ void weigh(const Tile& t, Softmax<T>& softmax, const Common& all, int key,
                        uint32_t (&weights)[m], float (&shrink)[2]) {
    if constexpr (S::transforms) {
      all.transform.template apply<n>(scores_, key);
      take_unseen<n>(t, all, key);
      softmax.template weigh<n>(scores_, weights, shrink, 1.0f);
    } else {
      softmax.template weigh<n>(scores_, weights, shrink, all.transform.scale);
    }
  }

  // Zeros the values past the sequence's end, whose weight is zero: they may be no numbers. Every
  // group does it, so that none waits for another.
  __device__ void clear_values(int stage, int from, int to) const {
    const uint32_t v = shared_ + S::v_at + stage * S::v_bytes;
    const int chunks = (to - from) * (kPanelRowBytes / 16);
    for (int i = static_cast<int>(threadIdx.x) % kGroupThreads; i < chunks; i += kGroupThreads) {
#pragma unroll
      for (int p = 0; p < S::value_panels; ++p) {
        store_zeros(v + p * S::panel + from * kPanelRowBytes + i * 16);
      }
    }
    publish_to_units();
    named_barrier_sync(kTails + group_, kGroupThreads);
  }

  // A scale of fp8 keys or values, which may differ from one key head to the next.
  __device__ float scale_of(const float* scales, int stride, const Tile& t) const {
    return S::fp8 && scales ? scales[t.head / a_.group * stride] : 1.0f;
  }

  __device__ void finish(const Tile& t, const Softmax<T>& softmax) const {
    const float v_scale = scale_of(a_.v_scale, a_.v_scale_stride, t);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const RowPlace place(a_, t, warp_row_ + lane_ / 4 + 8 * r);
      const bool inside = place.token < t.queries;
      const float sink = a_.sinks && inside ? a_.sinks[place.head] : kMinusInfinity;
      float lse;
      const float factor = softmax.finish(r, sink, &lse) * v_scale;
      const int64_t token = t.first_query + place.token;
      if (a_.lse && inside && lane_ % 4 == 0) a_.lse[place.head * a_.lse_head + token] = lse;
      T* out = static_cast<T*>(a_.out) + token * a_.out_token + place.head * a_.out_head;
#pragma unroll
      for (int column = 0; column < S::value_dim; column += 32) {
        const uint4 eight = transposed(column / 2 + 2 * r, factor);
        const int own = column + 8 * (lane_ % 4);
        if (inside && own < a_.value_dim) *reinterpret_cast<uint4*>(out + own) = eight;
      }
    }
  }

  // Of 32 columns, four neighbouring lanes have every fourth pair: each gets eight in a row.
  __device__ uint4 transposed(int at, float factor) const {
    uint32_t w[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      w[j] = pack_output(sums_[at + 4 * j] * factor, sums_[at + 4 * j + 1] * factor);
    }
    const bool odd = lane_ % 2 != 0, high = lane_ % 4 > 1;
    exchange(1, odd, w[0], w[1]);
    exchange(1, odd, w[2], w[3]);
    exchange(2, high, w[0], w[2]);
    exchange(2, high, w[1], w[3]);
    return {w[0], w[1], w[2], w[3]};
  }
  __device__ uint32_t pack_output(float low, float high) const {
    return S::fp8 && a_.bf16 ? pack<__nv_bfloat16>(low, high) : pack<T>(low, high);
  }
  // Swaps the lower lane's second word for the upper lane's first.
  __device__ static void exchange(int distance, bool upper, uint32_t& first, uint32_t& second) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, upper ? first : second, distance);
    first = upper ? other : first;
    second = upper ? second : other;
  }

  const Prefill& a_;
  uint32_t shared_, queries_;  // where they are, and this group's rows of the tile's queries
  Control* control_;
  int lane_, group_, warp_row_;
  int count_ = 0, tiles_ = 0;  // blocks of keys and tiles before those at hand
  float scores_[S::keys / 2], sums_[S::value_dim / 2];
  uint32_t weights_[S::keys / 4], other_weights_[S::doubled ? S::keys / 4 : 1];
};

}  // namespace mainboard::cuda
