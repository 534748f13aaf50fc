// Reads float32 from stdin and writes what HIP's kernels would store of each, format by format.
#include <cstdio>
#include <vector>

#include "csrc/hip/float8.h"

template <class T>
void write(const std::vector<float>& values) {
  for (float x : values) std::putchar(T(x).code);
}

int main() {
  std::vector<float> values;
  for (float x; std::fread(&x, sizeof x, 1, stdin) == 1;) values.push_back(x);
  write<mainboard::hip::E4M3>(values);
  write<mainboard::hip::E5M2>(values);
  write<mainboard::hip::E4M3Fnuz>(values);
  write<mainboard::hip::E5M2Fnuz>(values);
  for (float x : values) {
    const auto y = mainboard::hip::to_bfloat16(x);
    std::fwrite(&y, sizeof y, 1, stdout);
  }
}
