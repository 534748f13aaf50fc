// Latent attention (MLA) over few queries: one key head of 576 columns, whose first 512 are the
// values too, so that every row is read once.
//
// A block holds 64 rows of queries x heads and two stages of 64 keys. Its two warpgroups take half
// the keys of a stage each for the scores, exchange maxima and weights, and take half the columns
// each for the sums, which no single warpgroup has the registers for. Stretches, pieces and joins
// are those of decode_schedule.h and decode_finish.h.
#pragma once

#include "csrc/cuda/decode_finish.h"
#include "csrc/cuda/wgmma.h"

namespace mainboard::cuda {

template <class T_>
struct Latent {
  using T = T_;
  static constexpr int key_dim = 576, dim = 512;
  static constexpr bool fp8 = false;
  static constexpr int rows = 64, row_tiles = 4, threads = 256;
  static constexpr int unit_keys = 64;
  static constexpr int group_keys = unit_keys / 2, group_columns = dim / 2;
  static constexpr int panels = key_dim / kPanelColumns;
  static constexpr int panel_bytes = 64 * kPanelRowBytes;
  static constexpr int tile_bytes = panels * panel_bytes;  // of queries, and of a stage
  static constexpr int stages = 2;
  static constexpr int weights_at = (1 + stages) * tile_bytes;
  static constexpr int maxima_at = weights_at + 64 * unit_keys * 2;
  static constexpr int shared_at = maxima_at + threads * static_cast<int>(sizeof(float2));
  static constexpr int shared_bytes = shared_at + static_cast<int>(sizeof(Shared<Latent>));
};

// Where 16 bytes of a row are: chunk c is columns 8 c to 8 c + 7.
template <class S>
__device__ uint32_t swizzled(int row, int chunk) {
  return chunk / 8 * S::panel_bytes + row * kPanelRowBytes + ((chunk ^ row) % 8) * 16;
}

// One warp's copies: an eighth of a stage's rows, which is half a block of keys.
template <class S>
class LatentLoader {
 public:
  using Walk = Walker<S::rows, S::unit_keys>;

  __device__ LatentLoader(const Decode& a, const Walk& walk, uint32_t ring, int warp, int lane)
      : a_(a), walk_(walk), ring_(ring), warp_(warp), lane_(lane) {
    if (!walk_.done()) enter();
  }

  // Starts the copies of the next unit into a stage; nothing once the block's stretch is loaded.
  __device__ void load(int stage) {
    if (!walk_.done()) {
      copy(stage);
      if (++unit_ == unit_end_) {
        walk_.advance();
        if (!walk_.done()) enter();
      } else if (unit_ == looked_up_ + 32) {
        look_up();
      }
    }
    commit_copies();
  }

 private:
  static constexpr int kRows = S::unit_keys / (S::threads / 32);
  static constexpr int kChunks = S::key_dim / 8;
  static constexpr int kCopies = kRows * kChunks / 32;  // of a lane
  static_assert(kCopies * 32 == kRows * kChunks && kBlockKeys % kRows == 0);

  __device__ void enter() {
    const Segment s = walk_.segment();
    unit_ = s.unit;
    unit_end_ = s.unit_end;
    keys_ = s.sequence.keys;
    table_ = a_.table + s.index * a_.table_row;
    look_up();
  }

  __device__ int first_key(int unit) const { return unit * S::unit_keys + warp_ * kRows; }

  // Reads the table for the next 32 units, one a lane.
  __device__ void look_up() {
    looked_up_ = unit_;
    const int unit = unit_ + lane_, key = first_key(unit);
    page_ = 0;
    if (unit < unit_end_ && key < keys_) page_ = table_[a_.page_blocks.divide(key / kBlockKeys)];
  }

  __device__ void copy(int stage) {
    const int64_t page = __shfl_sync(0xffffffffu, page_, unit_ - looked_up_);
    const int key = first_key(unit_), block = key / kBlockKeys;
    const int page_blocks = static_cast<int>(a_.page_blocks.value);
    const int64_t slot =
        (block - a_.page_blocks.divide(block) * page_blocks) * kBlockKeys + key % kBlockKeys;
    const char* from = a_.k.data + page * a_.k.page + slot * a_.k.token;
    const uint32_t to = ring_ + stage * S::tile_bytes;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int row = (i * 32 + lane_) / kChunks, chunk = (i * 32 + lane_) % kChunks;
      const bool used = key + row < keys_;
      copy_async_or_zero(to + swizzled<S>(warp_ * kRows + row, chunk),
                         used ? from + int64_t{a_.k.token} * row + chunk * 16 : a_.k.data,
                         used ? 16 : 0);
    }
  }

  const Decode& a_;
  Walk walk_;
  const uint32_t ring_;
  const int warp_, lane_;
  const int* table_;
  int unit_, unit_end_, keys_;
  int looked_up_, page_;
};

// One warpgroup's arithmetic. A thread has two rows; see wgmma.h.
template <class S>
class LatentTile {
 public:
  using T = typename S::T;

  __device__ LatentTile(char* shared, int thread)
      : shared_(shared), thread_(thread), group_(thread / kGroupThreads) {}

  __device__ void enter(const Decode& a, const Segment& s) {
    const float scale = a.k_scale ? a.k_scale[0] : 1.0f;
    scale_ = a.scale_log2 * scale;
    const int before = s.sequence.keys - s.sequence.queries;
    all_to_ = min(s.sequence.keys, before + a.group.divide(s.row) + a.right + 1);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      end_[r] = min(s.sequence.keys, before + a.group.divide(s.row + row(r)) + a.right + 1);
      maximum[r] = -INFINITY;
      total[r] = 0.0f;
    }
#pragma unroll
    for (float& x : sums) x = 0.0f;
  }

  // This thread's r-th row of the tile.
  __device__ int row(int r) const {
    return thread_ % kGroupThreads / 32 * 16 + thread_ % 32 / 4 + 8 * r;
  }

  // Attends to a stage whose first key is `key`. All threads of the block, after a barrier.
  __device__ void attend(int stage, int key) {
    const uint32_t keys = shared_address(shared_) + (1 + stage) * S::tile_bytes;
    float scores[S::group_keys / 2];
    multiply_keys(scores, keys);
    see(scores, key + group_ * S::group_keys);
    share_maxima(scores);
    uint32_t own[S::group_keys / 4], other[S::group_keys / 4];
    weigh(scores, own);
    share_weights(own, other);
    multiply_values(own, other, keys);
  }

  // The totals of both halves of the keys. All threads of the block.
  __device__ void finish() {
#pragma unroll
    for (int r = 0; r < 2; ++r) total[r] = quad_sum(total[r]);
    __syncthreads();
    maxima(group_)[0] = {total[0], total[1]};
    __syncthreads();
    const float2 theirs = maxima(1 - group_)[0];
    total[0] += theirs.x;
    total[1] += theirs.y;
  }

  float maximum[2], total[2];
  float sums[S::group_columns / 2];

 private:
  __device__ float2* maxima(int group) const {
    return reinterpret_cast<float2*>(shared_ + S::maxima_at) + group * kGroupThreads +
           thread_ % kGroupThreads;
  }

  __device__ void multiply_keys(float (&scores)[S::group_keys / 2], uint32_t keys) const {
    const uint64_t q = operand_of_rows(shared_address(shared_));
    const uint64_t k = operand_of_rows(keys + group_ * S::group_keys * kPanelRowBytes);
    hold(scores);
    begin_products();
#pragma unroll
    for (int step = 0; step < S::key_dim / 16; ++step) {
      const uint32_t at = step / 4 * S::panel_bytes + step % 4 * 32;
      Product<T, S::group_keys>::rows(scores, advanced(q, at), advanced(k, at), step > 0);
    }
    commit_products();
    wait_for_products<0>(scores);
  }

  // Scores in log2 units, those of keys that are not seen at minus infinity.
  __device__ void see(float (&scores)[S::group_keys / 2], int key) const {
    const bool all = key + S::group_keys <= all_to_;
#pragma unroll
    for (int i = 0; i < S::group_keys / 2; ++i) {
      const int at = key + i / 4 * 8 + thread_ % 4 * 2 + i % 2;
      scores[i] = all || at < end_[i / 2 % 2] ? scores[i] * scale_ : -INFINITY;
    }
  }

  // Brings the maxima up to date with both warpgroups' scores.
  __device__ void share_maxima(const float (&scores)[S::group_keys / 2]) {
    float most[2] = {maximum[0], maximum[1]};
#pragma unroll
    for (int i = 0; i < S::group_keys / 2; ++i) most[i / 2 % 2] = fmaxf(most[i / 2 % 2], scores[i]);
#pragma unroll
    for (int r = 0; r < 2; ++r) most[r] = quad_max(most[r]);
    maxima(group_)[0] = {most[0], most[1]};
    __syncthreads();
    const float2 theirs = maxima(1 - group_)[0];
    most[0] = fmaxf(most[0], theirs.x);
    most[1] = fmaxf(most[1], theirs.y);
    const bool grew = most[0] > maximum[0] || most[1] > maximum[1];
    if (!__any_sync(0xffffffffu, grew)) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float shrink = maximum[r] == -INFINITY ? 0.0f : exp2_approx(maximum[r] - most[r]);
      maximum[r] = most[r];
      total[r] *= shrink;
#pragma unroll
      for (int i = 0; i < S::group_columns / 8; ++i) {
        sums[4 * i + 2 * r] *= shrink;
        sums[4 * i + 2 * r + 1] *= shrink;
      }
    }
  }

  // The sums' layout is the operand's: pairs of columns, of both rows, in turn.
  __device__ void weigh(const float (&scores)[S::group_keys / 2],
                        uint32_t (&weights)[S::group_keys / 4]) {
    float base[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) base[r] = maximum[r] == -INFINITY ? 0.0f : maximum[r];
#pragma unroll
    for (int i = 0; i < S::group_keys / 4; ++i) {
      const float low = exp2_approx(scores[2 * i] - base[i % 2]);
      const float high = exp2_approx(scores[2 * i + 1] - base[i % 2]);
      total[i % 2] += low + high;
      weights[i] = pack<T>(low, high);
    }
  }

  // The same thread of the other warpgroup has the same rows, and the other half of the keys.
  __device__ void share_weights(const uint32_t (&own)[8], uint32_t (&other)[8]) const {
    uint4* all = reinterpret_cast<uint4*>(shared_ + S::weights_at);
    const int thread = thread_ % kGroupThreads;
    uint4* mine = all + group_ * 2 * kGroupThreads + thread;
    mine[0] = {own[0], own[1], own[2], own[3]};
    mine[kGroupThreads] = {own[4], own[5], own[6], own[7]};
    __syncthreads();
    const uint4* theirs = all + (1 - group_) * 2 * kGroupThreads + thread;
    const uint4 x = theirs[0], y = theirs[kGroupThreads];
    other[0] = x.x, other[1] = x.y, other[2] = x.z, other[3] = x.w;
    other[4] = y.x, other[5] = y.y, other[6] = y.z, other[7] = y.w;
  }

  __device__ void multiply_values(uint32_t (&own)[8], uint32_t (&other)[8], uint32_t keys) {
    const uint64_t v = operand_of_columns(
        keys + group_ * (S::group_columns / kPanelColumns) * S::panel_bytes, S::panel_bytes);
    uint32_t weights[4][4];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      weights[i / 4][i % 4] = group_ == 0 ? own[i] : other[i];
      weights[2 + i / 4][i % 4] = group_ == 0 ? other[i] : own[i];
    }
    hold(sums);
    begin_products();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      Product<T, S::group_columns>::columns(sums, weights[step],
                                            advanced(v, step * 16 * kPanelRowBytes), 1);
    }
    commit_products();
    wait_for_products<0>(sums);
  }

  char* const shared_;
  const int thread_, group_;
  float scale_;
  int end_[2], all_to_;
};

// Copies the rows of a tile's queries. All threads; nothing may read the old ones any more.
template <class S>
__device__ void copy_queries(const Decode& a, const Segment& s, uint32_t to, int thread) {
  using T = typename S::T;
  constexpr int kChunks = S::key_dim / 8;
  for (int i = thread; i < S::rows * kChunks; i += S::threads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const RowPlace place(a, s, s.row + row);
    const T* from = static_cast<const T*>(a.q) + place.token * a.q_token + place.head * a.q_head;
    copy_async_or_zero(to + swizzled<S>(row, chunk), place.used ? from + 8 * chunk : a.q,
                       place.used ? 16 : 0);
  }
  commit_copies();
}

// Writes a thread's rows: the tile's, or its piece's into the workspace.
template <class S>
__device__ void write_rows_of(const Decode& a, const Segment& s, const LatentTile<S>& tile,
                              int thread) {
  using T = typename S::T;
  const int column = thread / kGroupThreads * S::group_columns + thread % 4 * 2;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = tile.row(r);
    const RowPlace place(a, s, s.row + row);
    if (!place.used) continue;
    const float total = tile.total[r];
    if (s.pieces == 1) {
      const float scale = total > 0.0f ? (a.v_scale ? a.v_scale[0] : 1.0f) / total : 0.0f;
      T* to = static_cast<T*>(a.out) + place.token * a.out_token + place.head * a.out_head + column;
#pragma unroll
      for (int i = 0; i < S::group_columns / 8; ++i) {
        *reinterpret_cast<uint32_t*>(to + 8 * i) =
            pack<T>(tile.sums[4 * i + 2 * r] * scale, tile.sums[4 * i + 2 * r + 1] * scale);
      }
      if (a.lse && column == 0) {
        a.lse[place.head * a.lse_head + place.token] =
            total > 0.0f ? (tile.maximum[r] + __log2f(total)) * kLn2 : -INFINITY;
      }
    } else {
      const int64_t at = int64_t{s.slot(s.piece)} * a.slot_rows + row;
      float* to = a.workspace.sums + at * S::dim + column;
#pragma unroll
      for (int i = 0; i < S::group_columns / 8; ++i) {
        __stcg(reinterpret_cast<float2*>(to + 8 * i),
               make_float2(tile.sums[4 * i + 2 * r], tile.sums[4 * i + 2 * r + 1]));
      }
      if (column == 0) __stcg(a.workspace.statistics + at, make_float2(tile.maximum[r], total));
    }
  }
}

template <class S>
__global__ void __launch_bounds__(S::threads, 1) latent_decode(const __grid_constant__ Decode a) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<Shared<S>*>(memory + S::shared_at);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int warp = __shfl_sync(0xffffffffu, thread / 32, 0);
  wait_for_previous_grid();
  let_next_grid_start();

  Walker<S::rows, S::unit_keys> walk(a, lane);
  if (walk.done()) return;
  const uint32_t queries = shared_address(memory);
  Segment segment = walk.segment();
  copy_queries<S>(a, segment, queries, thread);
  LatentLoader<S> loader(a, walk, queries + S::tile_bytes, warp, lane);
  loader.load(0);

  LatentTile<S> tile(memory, thread);
  Finish<S> finish(a, shared, thread);
  Segment unsettled;
  unsettled.pieces = 0;
  for (int stage = 0;;) {
    tile.enter(a, segment);
    for (int unit = segment.unit; unit < segment.unit_end; ++unit) {
      wait_for_copies<0>();
      publish_to_units();
      __syncthreads();
      loader.load(1 - stage);
      tile.attend(stage, unit * S::unit_keys);
      stage = 1 - stage;
    }
    tile.finish();
    const Segment ended = segment;
    walk.advance();
    const bool more = !walk.done();
    if (more) {
      segment = walk.segment();
      copy_queries<S>(a, segment, queries, thread);
    }
    write_rows_of(a, ended, tile, thread);
    if (ended.pieces > 1 && unsettled.pieces > 1) finish.settle(unsettled);
    __syncthreads();
    if (ended.pieces > 1) {
      finish.arrive(ended);
      unsettled = ended;
    }
    if (!more) break;
  }
  if (unsettled.pieces > 1) finish.settle(unsettled);
}

}  // namespace mainboard::cuda
