// The warps of a prefill kernel that bring queries, keys and values to shared memory.
#pragma once

#include "csrc/cuda/prefill_shape.h"

namespace mainboard::cuda {

// One tensor's blocks, copied box by box. A lane knows where one box is, a block ahead, so that no
// copy waits for the table of pages. Dense blocks are one box; the boxes past the sequence's last
// key are left out, because the table says nothing of their pages.
template <class S, int panels, int row_bytes>
class Boxes {
 public:
  __device__ Boxes(const Prefill& a, const CUtensorMap* map)
      : a_(a), map_(map), lane_(threadIdx.x % 32) {}

  __device__ void enter(const Tile& t) { look_up(t, 0); }

  // Takes up a block, which `send` then copies, and looks up the next one.
  __device__ void begin(const Tile& t, int block) {
    row_ = next_row_;
    page_ = next_page_;
    boxes_ = (keys_of(t, block) + a_.box_keys - 1) / a_.box_keys;
    key_head_ = t.head / a_.group;
    if (block + 1 < t.blocks) look_up(t, block + 1);
  }
  __device__ void send(uint32_t to, uint64_t* full) const {
    const int box_bytes = a_.box_keys * row_bytes;
    if (lane_ == 0) barrier_arrive_expecting(full, boxes_ * box_bytes * panels);
    __syncwarp();
#pragma unroll 2
    for (int box = 0; box < boxes_; ++box) {
      const int y = from(row_, box), z = from(page_, box);
      if (lane_ == 0) {
#pragma unroll
        for (int p = 0; p < panels; ++p) {
          copy_box(to + p * S::panel, map_, full, p * kPanelColumns, key_head_, y, z);
        }
      }
      to += box_bytes;
    }
    __syncwarp();
  }

 private:
  __device__ static int from(int x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }

  // Of a block, before the sequence's end.
  __device__ static int keys_of(const Tile& t, int block) {
    return min(t.keys, t.end - block * S::keys) - t.first_of(block, S::keys);
  }

  __device__ void look_up(const Tile& t, int block) {
    const int of_block = lane_ * a_.box_keys, row = t.first_of(block, S::keys) + of_block;
    next_row_ = row + t.first_key;
    if (a_.table == nullptr || of_block >= keys_of(t, block)) return;
    const int page = row / a_.page_keys;
    next_row_ = row - page * a_.page_keys;
    next_page_ = __ldg(a_.table + t.sequence * a_.table_row + page);
  }

  const Prefill& a_;
  const CUtensorMap* map_;
  int lane_;
  int row_ = 0, page_ = 0, next_row_ = 0, next_page_ = 0;  // of this lane's box
  int boxes_ = 0, key_head_ = 0;
};

// The warps that tell the copy engine what to copy. The first takes tiles, makes them known and
// copies queries; the second copies keys and the third values, so that neither waits for the other.
// If keys and values are fp8, the first copies them too.
template <class S>
class Producer {
 public:
  using Control = typename S::Control;

  __device__ Producer(const Prefill& a, uint32_t shared, Control* control)
      : a_(a), shared_(shared), control_(control), lane_(threadIdx.x % 32) {}

  __device__ void run(int warp) {
    if (warp == 0) {
      if constexpr (S::fp8) {
        lead(Raw(*this));
      } else {
        lead(Nothing());
      }
    } else if (warp == 1) {
      follow<S::panels>(&a_.k, S::k_at, control_->k_full, control_->k_empty);
    } else if (warp == 2) {
      follow<S::value_panels>(&a_.v, S::v_at, control_->v_full, control_->v_empty);
    }
  }

 private:
  // What the first warp copies beside queries.
  struct Nothing {
    __device__ void enter(const Tile&) {}
    __device__ void copy(const Tile&, int) {}
  };

  // Keys and values as fp8, for the warps that convert: each block's values after the next block's
  // keys, which are needed first.
  struct Raw {
    __device__ explicit Raw(const Producer& p)
        : control(p.control_),
          to(p.shared_ + S::raw_at),
          keys(p.a_, &p.a_.k),
          values(p.a_, &p.a_.v) {}

    __device__ void enter(const Tile& t) {
      keys.enter(t);
      values.enter(t);
    }
    __device__ void copy(const Tile& t, int block) {
      send(t, block, keys);
      if (block > 0) send(t, block - 1, values);
      if (block == t.blocks - 1) send(t, block, values);
    }
    template <class B>
    __device__ void send(const Tile& t, int block, B& boxes) {
      const Turn<S::raw_stages> at(count++);
      auto& raw = control->raw[at.stage];
      boxes.begin(t, block);
      barrier_wait(&raw.empty, at.parity ^ 1);
      boxes.send(to + at.stage * S::raw_bytes, &raw.full);
    }

    Control* control;
    uint32_t to;
    Boxes<S, 1, S::dim> keys;
    Boxes<S, 1, S::value_dim> values;
    int count = 0;
  };

  template <class Copies>
  __device__ void lead(Copies copies) {
    TileWalker<S::rows, S::keys, S::grain, S::bytes_of_key> walker(a_);
    find(walker, 0);
    for (int tiles = 0;; ++tiles) {
      const int place = tiles % kTilesKnown;
      const Tile& t = control_->tiles[place];
      if (lane_ == 0) barrier_arrive(&control_->known[place]);
      if (t.blocks > 0) {
        copies.enter(t);
        copies.copy(t, 0);
      }
      const Turn<S::q_stages> at(tiles);
      barrier_wait(&control_->q_empty[at.stage], at.parity ^ 1);
      if (lane_ == 0) copy_queries(t, at.stage);
      __syncwarp();
      if (t.sequence == kNoTile) break;
      find(walker, (tiles + 1) % kTilesKnown);  // while this one is copied
      for (int block = 1; block < t.blocks; ++block) copies.copy(t, block);
    }
  }

  template <class Walker>
  __device__ void find(Walker& walker, int place) const {
    const Tile t = walker.next();
    if (lane_ == 0) control_->tiles[place] = t;
    __syncwarp();
  }

  // Tells the other warpgroups of the tile, once its queries are there if it has any keys.
  __device__ void copy_queries(const Tile& t, int stage) const {
    uint64_t* full = &control_->q_full[stage];
    if (t.blocks == 0) return barrier_arrive(full);
    barrier_arrive_expecting(full, S::q_bytes);
#pragma unroll
    for (int p = 0; p < S::panels; ++p) {
      copy_box(shared_ + stage * S::q_bytes + p * S::q_panel, &a_.q, full, p * kPanelColumns,
               t.head, t.first_query + t.token);
    }
  }

  // Copies one tensor's blocks, in the order of the tiles.
  template <int panels>
  __device__ void follow(const CUtensorMap* map, int at, uint64_t* full, uint64_t* empty) const {
    Boxes<S, panels, kPanelRowBytes> boxes(a_, map);
    int count = 0;
    for (int tiles = 0;; ++tiles) {
      const Turn<kTilesKnown> place(tiles);
      barrier_wait(&control_->known[place.stage], place.parity);
      const Tile& t = control_->tiles[place.stage];
      if (t.sequence == kNoTile) return;
      const int blocks = t.blocks;  // read once: when the last is on its way, `t` may be another
      boxes.enter(t);
      for (int block = 0; block < blocks; ++block) {
        const Turn<S::stages> to(count++);
        boxes.begin(t, block);
        barrier_wait(&empty[to.stage], to.parity ^ 1);
        boxes.send(shared_ + at + to.stage * (panels * S::panel), &full[to.stage]);
      }
    }
  }

  const Prefill& a_;
  uint32_t shared_;
  Control* control_;
  int lane_;
};

// A warp that turns fp8 blocks into float16 ones, in the order in which they were copied. What it
// converts past the sequence's last key are zeros.
template <class S>
class Converter {
 public:
  using Control = typename S::Control;

  __device__ Converter(const Prefill& a, uint32_t shared, Control* control)
      : a_(a), shared_(shared), control_(control), thread_(threadIdx.x - 32) {}

  __device__ void run() {
    for (int tiles = 0;; ++tiles) {
      const Turn<kTilesKnown> place(tiles);
      barrier_wait(&control_->known[place.stage], place.parity);
      const Tile t = control_->tiles[place.stage];
      if (t.sequence == kNoTile) return;
      for (int block = 0; block <= t.blocks; ++block) {
        if (block < t.blocks) {
          const Turn<S::stages> to(k_count_++);
          convert<S::dim>(t, block, S::k_at + to.stage * S::k_bytes, &control_->k_full[to.stage],
                          &control_->k_empty[to.stage], to.parity);
        }
        if (block > 0) {
          const Turn<S::stages> to(v_count_++);
          convert<S::value_dim>(t, block - 1, S::v_at + to.stage * S::v_bytes,
                                &control_->v_full[to.stage], &control_->v_empty[to.stage],
                                to.parity);
        }
      }
    }
  }

 private:
  // The next of what was copied, which are a block's keys or values.
  template <int dim>
  __device__ void convert(const Tile& t, int block, int at, uint64_t* full, uint64_t* empty,
                          int parity) {
    const Turn<S::raw_stages> from(raw_count_++);
    auto& raw = control_->raw[from.stage];
    const int first = t.first_of(block, S::keys);
    const int used = t.end - block * S::keys - first, valid = t.keys - first;
    barrier_wait(&raw.full, from.parity);
    barrier_wait(empty, parity ^ 1);
    const uint32_t source = shared_ + S::raw_at + from.stage * S::raw_bytes;
    if (a_.cache_e5m2) {
      convert<dim, E5M2>(source, shared_ + at, used, valid);
    } else {
      convert<dim, E4M3>(source, shared_ + at, used, valid);
    }
    publish_to_units();
    release(full);
    release(&raw.empty);
  }

  // A warp takes eight rows at a time and a lane 16 columns of each of their panels, in one row:
  // what it reads and writes is at the same distance from eight rows to the next. Of each pair of
  // rows the second takes the panels in another order, so that no two lanes meet in a bank.
  template <int dim, class F>
  __device__ void convert(uint32_t from, uint32_t to, int used, int valid) const {
    constexpr int kPanels = dim / kPanelColumns, kRows = 8;
    const int lane = thread_ % 32, row = lane / 4, swap = kPanels % 2 == 0 ? row % 2 : 0;
    const uint32_t chunk = (lane % 4 * 2 ^ row) * 16;
    from += row * dim + lane % 4 * 16;
    to += row * kPanelRowBytes + chunk;
    for (int first = thread_ / 32 * kRows; first < used; first += S::converters * kRows) {
      uint4 x[kPanels];
#pragma unroll
      for (int p = 0; p < kPanels; ++p) {
        x[p] = load_shared(from + first * dim + (p ^ swap) * kPanelColumns);
      }
      if (first + kRows > valid && first + row >= valid) {
#pragma unroll
        for (int p = 0; p < kPanels; ++p) x[p] = {};
      }
#pragma unroll
      for (int p = 0; p < kPanels; ++p) {
        const uint32_t line = to + (p ^ swap) * S::panel + first * kPanelRowBytes;
        store_shared(line, eight_halves<F>(x[p].x, x[p].y));
        store_shared(line ^ 16, eight_halves<F>(x[p].z, x[p].w));
      }
    }
  }
  template <class F>
  __device__ static uint4 eight_halves(uint32_t first, uint32_t second) {
    return {halves_of_fp8<F>(first), halves_of_fp8<F>(first >> 16), halves_of_fp8<F>(second),
            halves_of_fp8<F>(second >> 16)};
  }

  const Prefill& a_;
  uint32_t shared_;
  Control* control_;
  int thread_;
  int raw_count_ = 0, k_count_ = 0, v_count_ = 0;
};

}  // namespace mainboard::cuda
