// Prints what every block of a grid would do in latent decode: reads batches from the standard
// input.
//   grid abreast heads fixed sequences (queries keys)...
// A line for each segment, then one that says "end".
#define MAINBOARD_LANES 1
#include <iostream>
#include <vector>

#include "csrc/cuda/latent_schedule.h"

using namespace mainboard::cuda;

int main() {
  int grid, heads, sequences;
  LatentDecode a = {};
  while (std::cin >> grid >> a.abreast >> heads >> a.fixed_pieces >> sequences) {
    std::vector<int> cu_queries = {0}, keys;
    for (int i = 0; i < sequences; ++i) {
      int queries, length;
      std::cin >> queries >> length;
      cu_queries.push_back(cu_queries.back() + queries);
      keys.push_back(length);
    }
    a.heads = Divisor(static_cast<uint32_t>(heads));
    a.cu_queries = cu_queries.data();
    a.used_keys = keys.data();
    a.sequences = sequences;
    gridDim.x = static_cast<unsigned>(grid);
    for (int block = 0; block < grid; ++block) {
      blockIdx.x = static_cast<unsigned>(block);
      LatentWalker<64> walk(a, 0);
      for (LatentSegment s = walk.next(); s.pieces > 0; s = walk.next()) {
        std::cout << block << ' ' << s.index << ' ' << s.row << ' ' << s.unit << ' ' << s.unit_end
                  << ' ' << s.pieces << ' ' << s.piece << ' ' << s.slot(s.piece) << ' ' << s.counter
                  << '\n';
      }
    }
    std::cout << "end\n";
  }
}
