// What one thread can do at most with an instruction set: loops that do one thing and nothing else.
// `mainboard bench` runs them on every thread, and sets each kernel beside its own limit.
#pragma once

#include <cstdint>

namespace mainboard::cpu {

struct Limits {
  // Each loop does some work and says how much: bytes, multiply-adds times two, exponentials.
  double (*read)(const char* bytes, int64_t count);
  double (*multiply_add)();
  double (*multiply_pairs)();  // of bfloat16, by the vectors; null where they cannot
  double (*multiply_tiles)();  // null where there are no matrix tiles
  double (*exponentials)();
  // Multiply-adds of tiles, with as many exponentials between them as a head dimension of 128 has,
  // and nothing that waits for anything; null where there are no tiles.
  double (*multiply_and_soften)();
  // What the kernels of this set compute with, by name; the last has none.
  struct Function {
    const char* name;
    void (*map)(const float* from, float* to, int64_t n);
  };
  Function functions[6];
};

}  // namespace mainboard::cpu
