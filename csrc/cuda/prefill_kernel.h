// Attention of long queries on Hopper: one warpgroup copies, two or three compute.
//
// The structure is FlashAttention-3's (Shah et al., 2024, arXiv:2407.08608). While the matrix units
// work on one block's values and the next block's scores, a warpgroup computes the weights of the
// latter; and the warpgroups take turns at the matrix units, so that one's softmax falls into
// another's products. Blocks of keys are walked from the last to the first: those that need a mask
// come first. Products are 64 rows high; see wgmma.h for what a thread holds of them.
#pragma once

#include "csrc/cuda/prefill_softmax.h"
#include "csrc/cuda/wgmma.h"

namespace mainboard::cuda {

template <class T_, int kDim, int kValueDim, bool kTransforms>
struct PrefillShape {
  using T = T_;
  static constexpr int dim = kDim, value_dim = kValueDim;
  static constexpr bool transforms = kTransforms;
  static constexpr int groups = dim == 64 ? 3 : 2;  // that compute
  static constexpr int rows = 64 * groups;
  static constexpr int keys = value_dim <= 128 ? 128 : value_dim <= 192 ? 112 : 80;
  static constexpr int stages = dim == 64 ? 4 : 2;
  static constexpr int threads = kGroupThreads * (groups + 1);
  static constexpr int warps = 4 * groups;  // that compute
  static constexpr int producer_registers = groups == 3 ? 32 : 40;
  static constexpr int consumer_registers = groups == 3 ? 160 : 232;

  static constexpr int panels = dim / kPanelColumns, value_panels = value_dim / kPanelColumns;
  static constexpr int q_panel = rows * kPanelRowBytes, panel = keys * kPanelRowBytes;
  static constexpr int q_bytes = panels * q_panel;
  static constexpr int k_bytes = panels * panel, v_bytes = value_panels * panel;
  static constexpr int bytes_of_key = 2 * (dim + value_dim);

  // In shared memory, from a multiple of 1,024 on: Q, K's stages, V's stages, then this.
  struct Control {
    uint64_t q_full, q_empty;
    uint64_t k_full[stages], k_empty[stages], v_full[stages], v_empty[stages];
    Tile tile;
  };
  static constexpr int k_at = q_bytes, v_at = k_at + stages * k_bytes;
  static constexpr int control_at = v_at + stages * v_bytes;
  static constexpr int shared_bytes = 1024 + control_at + static_cast<int>(sizeof(Control));
};

// The same number in all lanes, known to the compiler to be so.
__device__ inline int uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }

// Where in the ring of stages block number `count` of a thread block is, and its phase's parity.
template <int stages>
struct Turn {
  int stage, parity;
  __device__ explicit Turn(uint32_t count)
      : stage(uniform(count % stages)), parity(count / stages % 2) {}
};

// Says that this warp needs what a barrier guards no longer.
__device__ inline void release(uint64_t* barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) barrier_arrive(barrier);
}

// --- The warp that copies ---

template <class S>
class Producer {
 public:
  using Control = typename S::Control;

  __device__ Producer(const Prefill& a, uint32_t shared, Control* control)
      : a_(a), shared_(shared), control_(control), lane_(threadIdx.x % 32) {}

  __device__ void run() {
    TileWalker<S::rows, S::keys, S::bytes_of_key> walker(a_);
    Tile t = walker.next();
    for (int tiles = 0;; ++tiles) {
      const bool any = t.sequence != kNoTile && t.begin < t.end;
      if (any) copy_keys(t, t.end - 1, count_);
      barrier_wait(&control_->q_empty, tiles % 2 ^ 1);
      if (lane_ == 0) announce(t, any);
      __syncwarp();
      if (t.sequence == kNoTile) return;
      if (any) copy_block(t, t.end - 1);
      const Tile following = walker.next();  // found while this one is copied
      for (int n = t.end - 2; n >= t.begin; --n) copy_block(t, n);
      t = following;
    }
  }

 private:
  // Gives the other warpgroups the tile, with its queries if it has any keys.
  __device__ void announce(const Tile& t, bool any) {
    control_->tile = t;
    if (!any) return barrier_arrive(&control_->q_full);
    barrier_arrive_expecting(&control_->q_full, S::q_bytes);
#pragma unroll
    for (int p = 0; p < S::panels; ++p) {
      copy_box(shared_ + p * S::q_panel, &a_.q, &control_->q_full, p * kPanelColumns, t.head,
               t.first_query + t.row / a_.pack);
    }
  }

  // Copies block n's values, and before them the next block's keys, which are needed first.
  __device__ void copy_block(const Tile& t, int n) {
    if (n > t.begin) copy_keys(t, n - 1, count_ + 1);
    copy_values(t, n, count_);
    ++count_;
  }
  __device__ void copy_keys(const Tile& t, int n, int count) {
    const Turn<S::stages> at(count);
    barrier_wait(&control_->k_empty[at.stage], at.parity ^ 1);
    copy_rows<S::panels>(t, n, &a_.k, shared_ + S::k_at + at.stage * S::k_bytes,
                         &control_->k_full[at.stage]);
  }
  __device__ void copy_values(const Tile& t, int n, int count) {
    const Turn<S::stages> at(count);
    barrier_wait(&control_->v_empty[at.stage], at.parity ^ 1);
    copy_rows<S::value_panels>(t, n, &a_.v, shared_ + S::v_at + at.stage * S::v_bytes,
                               &control_->v_full[at.stage]);
  }

  // Copies block n box by box, a lane a box; the boxes past the sequence's last key are left out,
  // because the table says nothing of their pages.
  template <int panels>
  __device__ void copy_rows(const Tile& t, int n, const CUtensorMap* map, uint32_t to,
                            uint64_t* full) {
    const int first = n * S::keys;
    const int boxes = min(S::keys / a_.box_keys, (t.keys - first + a_.box_keys - 1) / a_.box_keys);
    if (lane_ == 0) {
      barrier_arrive_expecting(full, boxes * a_.box_keys * kPanelRowBytes * panels);
    }
    __syncwarp();
    if (lane_ < boxes) {
      int row = first + lane_ * a_.box_keys, page = 0;
      if (a_.table != nullptr) {
        page = a_.table[t.sequence * a_.table_row + row / a_.page_keys];
        row %= a_.page_keys;
      } else {
        row += t.first_key;
      }
      const int key_head = t.head / a_.group;
#pragma unroll
      for (int p = 0; p < panels; ++p) {
        copy_box(to + p * S::panel + lane_ * a_.box_keys * kPanelRowBytes, map, full,
                 p * kPanelColumns, key_head, row, page);
      }
    }
    __syncwarp();
  }

  const Prefill& a_;
  uint32_t shared_;
  Control* control_;
  int lane_;
  int count_ = 0;  // blocks of keys before the one at hand
};

// --- The warpgroups that compute ---

template <class S>
class Consumer {
 public:
  using T = typename S::T;
  using Control = typename S::Control;

  __device__ Consumer(const Prefill& a, uint32_t shared, Control* control)
      : a_(a),
        shared_(shared),
        control_(control),
        lane_(threadIdx.x % 32),
        group_(uniform(threadIdx.x / kGroupThreads - 1)),
        warp_row_(64 * group_ + 16 * (threadIdx.x % kGroupThreads / 32)) {}

  __device__ void run() {
    if (group_ == S::groups - 1) give_turn();
    for (int tiles = 0;; ++tiles) {
      barrier_wait(&control_->q_full, tiles % 2);
      const Tile t = control_->tile;
      if (t.sequence == kNoTile) return;
      attend(t);
    }
  }

 private:
  static constexpr int kTurns = 1, kTails = kTurns + S::groups;  // named barriers of each group

  __device__ void take_turn() const { named_barrier_sync(kTurns + group_, 2 * kGroupThreads); }
  __device__ void give_turn() const {
    named_barrier_arrive(kTurns + (group_ + 1) % S::groups, 2 * kGroupThreads);
  }

  __device__ void attend(const Tile& t) {
    const Rows rows = Rows::of(a_, t, warp_row_, lane_);
    Softmax<S::transforms> softmax(a_);
    float sums[S::value_dim / 2];
    if (t.begin == t.end) {
      release(&control_->q_empty);
#pragma unroll
      for (float& x : sums) x = 0.0f;
    } else {
      walk(t, rows, softmax, sums);
    }
    finish(t, rows, softmax, sums);
  }

  __device__ void walk(const Tile& t, const Rows& rows, Softmax<S::transforms>& softmax,
                       float (&sums)[S::value_dim / 2]) {
    float scores[S::keys / 2], shrink[2];
    uint32_t weights[S::keys / 4];
    int n = t.end - 1;
    Turn<S::stages> at(count_);
    barrier_wait(&control_->k_full[at.stage], at.parity);
    begin_products();
    multiply_keys(scores, at.stage);
    wait_for_products<0>(scores);
    release(&control_->k_empty[at.stage]);
    if (n == t.begin) release(&control_->q_empty);
    see(scores, rows, n);
    softmax.weigh(scores, shrink);
    pack_weights(scores, weights);
    if (t.keys < (n + 1) * S::keys) {
      barrier_wait(&control_->v_full[at.stage], at.parity);
      clear_values(at.stage, t.keys - n * S::keys);
    }
    for (int add = 0; n-- > t.begin; add = 1) {
      const Turn<S::stages> next(++count_);
      barrier_wait(&control_->k_full[next.stage], next.parity);
      barrier_wait(&control_->v_full[at.stage], at.parity);
      take_turn();
      begin_products();
      multiply_keys(scores, next.stage);
      multiply_values(sums, weights, at.stage, add);
      give_turn();
      wait_for_products<1>(scores);
      release(&control_->k_empty[next.stage]);
      see(scores, rows, n);
      softmax.weigh(scores, shrink);
      hold(scores);
      // The branch keeps ptxas from waiting for the values' products before all this is done.
      if (n == t.begin) release(&control_->q_empty);
      wait_for_products<0>(sums);
      release(&control_->v_empty[at.stage]);
#pragma unroll
      for (int i = 0; i < S::value_dim / 2; ++i) sums[i] *= shrink[i / 2 % 2];
      pack_weights(scores, weights);
      at = next;
    }
    barrier_wait(&control_->v_full[at.stage], at.parity);
    begin_products();
    multiply_values(sums, weights, at.stage, t.end - t.begin > 1);
    wait_for_products<0>(sums);
    release(&control_->v_empty[at.stage]);
    ++count_;
  }

  // Sends scores = queries * keys of this stage to the matrix units.
  __device__ void multiply_keys(float (&scores)[S::keys / 2], int stage) const {
    const uint64_t q = operand_of_rows(shared_ + group_ * 64 * kPanelRowBytes);
    const uint64_t k = operand_of_rows(shared_ + S::k_at + stage * S::k_bytes);
#pragma unroll
    for (int step = 0; step < S::dim / 16; ++step) {
      const int panel = step / 4, within = step % 4 * 32;
      Product<T, S::keys>::rows(scores, advanced(q, panel * S::q_panel + within),
                                advanced(k, panel * S::panel + within), step > 0);
    }
    commit_products();
  }
  // Sends sums += weights * values of this stage to them; without `add` the sums start anew.
  __device__ void multiply_values(float (&sums)[S::value_dim / 2],
                                  const uint32_t (&weights)[S::keys / 4], int stage,
                                  int add) const {
    const uint64_t v = operand_of_columns(shared_ + S::v_at + stage * S::v_bytes, S::panel);
#pragma unroll
    for (int step = 0; step < S::keys / 16; ++step) {
      Product<T, S::value_dim>::columns(
          sums, weights + 4 * step, advanced(v, step * 16 * kPanelRowBytes), step > 0 ? 1 : add);
    }
    commit_products();
  }

  // What the rows see of block n's scores.
  __device__ void see(float (&scores)[S::keys / 2], const Rows& rows, int n) const {
    const int key = n * S::keys, own_key = key + 2 * (lane_ % 4);
    if constexpr (S::transforms) transform(scores, a_, rows, own_key);
    if (key + S::keys - 1 > rows.least_last || key < rows.most_first) {
      mask(scores, rows, own_key);
    }
  }

  // The sums' layout is the operand's: pairs of columns, of both rows, in turn.
  __device__ void pack_weights(const float (&scores)[S::keys / 2],
                               uint32_t (&weights)[S::keys / 4]) const {
#pragma unroll
    for (int i = 0; i < S::keys / 4; ++i) {
      weights[i] = pack<T>(scores[2 * i], scores[2 * i + 1]);
    }
  }

  // Zeros the values past the sequence's end, whose weight is zero: they may be no numbers. Every
  // group does it, so that none waits for another.
  __device__ void clear_values(int stage, int from) const {
    const uint32_t v = shared_ + S::v_at + stage * S::v_bytes;
    const int chunks = (S::keys - from) * (kPanelRowBytes / 16);
    for (int i = static_cast<int>(threadIdx.x) % kGroupThreads; i < chunks; i += kGroupThreads) {
#pragma unroll
      for (int p = 0; p < S::value_panels; ++p) {
        store_zeros(v + p * S::panel + from * kPanelRowBytes + i * 16);
      }
    }
    publish_to_units();
    named_barrier_sync(kTails + group_, kGroupThreads);
  }

  __device__ void finish(const Tile& t, const Rows& rows, const Softmax<S::transforms>& softmax,
                         float (&sums)[S::value_dim / 2]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool inside = rows.token[r] < t.queries;
      const float sink = a_.sinks && inside ? a_.sinks[rows.head[r]] : kMinusInfinity;
      float lse;
      const float factor = softmax.finish(r, sink, &lse);
      const int64_t token = t.first_query + rows.token[r];
      if (a_.lse && inside && lane_ % 4 == 0) a_.lse[rows.head[r] * a_.lse_head + token] = lse;
      T* out = static_cast<T*>(a_.out) + token * a_.out_token + rows.head[r] * a_.out_head;
#pragma unroll
      for (int column = 0; column < S::value_dim; column += 32) {
        uint4 eight = transposed(sums, column / 2 + 2 * r, factor);
        const int own = column + 8 * (lane_ % 4);
        if (inside && own < a_.value_dim) *reinterpret_cast<uint4*>(out + own) = eight;
      }
    }
  }

  // Of 32 columns, four neighbouring lanes have every fourth pair: each gets eight in a row.
  __device__ uint4 transposed(const float (&sums)[S::value_dim / 2], int at, float factor) const {
    uint32_t w[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      w[j] = pack<T>(sums[at + 4 * j] * factor, sums[at + 4 * j + 1] * factor);
    }
    const bool odd = lane_ % 2 != 0, high = lane_ % 4 > 1;
    exchange(1, odd, w[0], w[1]);
    exchange(1, odd, w[2], w[3]);
    exchange(2, high, w[0], w[2]);
    exchange(2, high, w[1], w[3]);
    return {w[0], w[1], w[2], w[3]};
  }
  // Swaps the lower lane's second word for the upper lane's first.
  __device__ static void exchange(int distance, bool upper, uint32_t& first, uint32_t& second) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, upper ? first : second, distance);
    first = upper ? other : first;
    second = upper ? second : other;
  }

  const Prefill& a_;
  uint32_t shared_;
  Control* control_;
  int lane_, group_, warp_row_;
  int count_ = 0;  // blocks of keys before the one at hand
};

template <class S>
__device__ void init_barriers(typename S::Control* control) {
  barrier_init(&control->q_full, 1);
  barrier_init(&control->q_empty, S::warps);
  for (int i = 0; i < S::stages; ++i) {
    barrier_init(&control->k_full[i], 1);
    barrier_init(&control->v_full[i], 1);
    barrier_init(&control->k_empty[i], S::warps);
    barrier_init(&control->v_empty[i], S::warps);
  }
  barrier_init_fence();
}

template <class S>
__global__ void __launch_bounds__(S::threads, 1) prefill(const __grid_constant__ Prefill a) {
  extern __shared__ char memory[];
  const uint32_t start = shared_address(memory), aligned = (start + 1023) & ~1023u;
  auto* control =
      reinterpret_cast<typename S::Control*>(memory + (aligned - start) + S::control_at);
  if (threadIdx.x == 0) {
    prefetch_map(&a.q);
    prefetch_map(&a.k);
    prefetch_map(&a.v);
    init_barriers<S>(control);
  }
  __syncthreads();
  let_next_grid_start();
  wait_for_previous_grid();
  if (threadIdx.x < kGroupThreads) {
    give_registers<S::producer_registers>();
    if (threadIdx.x < 32) Producer<S>(a, aligned, control).run();
  } else {
    take_registers<S::consumer_registers>();
    Consumer<S>(a, aligned, control).run();
  }
}

}  // namespace mainboard::cuda
