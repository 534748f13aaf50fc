// Prints what every block of a grid would do: reads batches from the standard input.
//   grid kv_heads group left fixed cluster rows_above rows_up_to sequences (queries keys)...
// A line for each segment, then one that says "end".
#define MAINBOARD_LANES 1
#include <iostream>
#include <vector>

#include "csrc/cuda/decode_schedule.h"

using namespace mainboard::cuda;

int main() {
  int grid, group, sequences;
  Decode a = {};
  while (std::cin >> grid >> a.kv_heads >> group >> a.left >> a.fixed_pieces >> a.cluster >>
         a.rows_above >> a.rows_up_to >> sequences) {
    std::vector<int> cu_queries = {0}, keys;
    for (int i = 0; i < sequences; ++i) {
      int queries, length;
      std::cin >> queries >> length;
      cu_queries.push_back(cu_queries.back() + queries);
      keys.push_back(length);
    }
    a.group = Divisor(static_cast<uint32_t>(group));
    a.cu_queries = cu_queries.data();
    a.used_keys = keys.data();
    a.sequences = sequences;
    gridDim.x = static_cast<unsigned>(grid);
    for (int block = 0; block < grid; ++block) {
      blockIdx.x = static_cast<unsigned>(block);
      for (Walker<16, 64> walk(a, 0); !walk.done(); walk.advance()) {
        const Segment s = walk.segment();
        std::cout << block << ' ' << s.index << ' ' << s.head << ' ' << s.row << ' ' << s.unit
                  << ' ' << s.unit_end << ' ' << s.sequence.units << ' ' << s.pieces << ' '
                  << s.piece << ' ' << (walk.clustered() ? -1 : s.slot(s.piece)) << ' '
                  << (walk.clustered() ? -1 : s.counter) << '\n';
      }
    }
    std::cout << "end\n";
  }
}
