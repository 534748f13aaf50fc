// Prints what every block of a grid would do: reads batches from the standard input.
//   decode grid kv_heads group left fixed cluster spread_units rows_above rows_up_to lengths
//   latent grid abreast heads fixed cluster pairs lengths
// where lengths are: sequences (queries keys)...
// A line for each segment, then one that says "end".
#define MAINBOARD_LANES 1
#include <iostream>
#include <string>
#include <vector>

#include "csrc/cuda/decode_schedule.h"
#include "csrc/cuda/latent_schedule.h"

using namespace mainboard::cuda;

namespace {

struct Batch {
  std::vector<int> cu_queries = {0}, keys;

  template <class Call>
  void read(Call* a) {
    std::cin >> a->sequences;
    for (int i = 0; i < a->sequences; ++i) {
      int queries, length;
      std::cin >> queries >> length;
      cu_queries.push_back(cu_queries.back() + queries);
      keys.push_back(length);
    }
    a->cu_queries = cu_queries.data();
    a->used_keys = keys.data();
  }
};

Divisor read_divisor() {
  int divisor;
  std::cin >> divisor;
  return Divisor(static_cast<uint32_t>(divisor));
}

void print(const Pieces& s, int index, int head, int row, int unit, int end, int slot,
           int counter) {
  std::cout << blockIdx.x << ' ' << index << ' ' << head << ' ' << row << ' ' << unit << ' ' << end
            << ' ' << s.pieces << ' ' << s.piece << ' ' << slot << ' ' << counter << '\n';
}

void print_decode() {
  Decode a = {};
  std::cin >> gridDim.x >> a.kv_heads;
  a.group = read_divisor();
  std::cin >> a.left >> a.fixed_pieces >> a.cluster >> a.spread_units >> a.rows_above >>
      a.rows_up_to;
  Batch batch;
  batch.read(&a);
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
    Bounds found[Walker<16, 64>::kMostFound];
    Walker<16, 64> walk(a, found);
    for (walk.plan(0); !walk.done(); walk.advance()) {
      const Segment s = walk.segment();
      print(s, s.index, s.head, s.row, s.unit, s.unit_end, walk.clustered() ? -1 : s.slot(s.piece),
            walk.clustered() ? -1 : s.counter);
    }
  }
}

void print_latent() {
  LatentDecode a = {};
  int abreast, cluster;
  std::cin >> gridDim.x >> abreast;
  a.heads = read_divisor();
  std::cin >> a.fixed_pieces >> cluster >> a.pairs;
  walk_together(abreast, cluster, static_cast<int>(gridDim.x), &a);
  Batch batch;
  batch.read(&a);
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
    LatentWalker<64> walk(a, 0);
    for (LatentSegment s = walk.next(); s.sharers > 0; s = walk.next()) {
      const LatentPieces p = walk.pieces();
      print(p, s.index, 0, s.row, s.unit, s.unit_end, p.own_slot(p.piece), p.own_counter());
    }
  }
}

}  // namespace

int main() {
  for (std::string kernel; std::cin >> kernel;) {
    if (kernel == "decode") print_decode();
    if (kernel == "latent") print_latent();
    std::cout << "end\n";
  }
}
