// The limits of this machine with all of torch's threads, for `mainboard bench`.
#include "csrc/cpu/limits.h"

#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "csrc/common/torch_abi.h"
#include "csrc/cpu/kernels.h"

namespace mainboard::cpu {

namespace {

using Timer = std::chrono::steady_clock;

double seconds_since(Timer::time_point begin) {
  return std::chrono::duration<double>(Timer::now() - begin).count();
}

// What each thread does in `seconds`, added up.
template <class Work>
double total_rate(double seconds, Work work) {
  const int64_t threads = num_threads();
  std::vector<double> rates(threads);
  parallel_for(threads, 1, [&](int64_t thread) {
    auto turn = work(thread, threads);  // first touches, then warms up
    turn();
    double done = 0.0;
    const Timer::time_point begin = Timer::now();
    while (seconds_since(begin) < seconds) done += turn();
    rates[thread] = done / seconds_since(begin);
  });
  double sum = 0.0;
  for (double rate : rates) sum += rate;
  return sum;
}

double read_rate(const Limits& limits, double seconds, int64_t bytes) {
  return total_rate(seconds, [&](int64_t, int64_t threads) {
    const int64_t mine = bytes / threads / 4096 * 4096;
    auto memory = std::make_shared<std::vector<char>>(mine);
    return [&limits, memory, mine] { return limits.read(memory->data(), mine); };
  });
}

}  // namespace

}  // namespace mainboard::cpu

#define MAINBOARD_EXPORT extern "C" __attribute__((visibility("default")))

// `what` is read, fma, pair, tile, exp or mix; `bytes` are read, by all threads together. 0 where
// there is no such loop.
MAINBOARD_EXPORT double mainboard_cpu_limit(const char* isa, const char* what, double seconds,
                                            int64_t bytes) {
  using namespace mainboard::cpu;
  const Kernels* kernels = find_kernels(isa);
  if (kernels == nullptr) return 0.0;
  const Limits* limits = kernels->limits;
  const std::string name = what;
  if (name == "read") return read_rate(*limits, seconds, bytes);
  auto loop = name == "fma"    ? limits->multiply_add
              : name == "pair" ? limits->multiply_pairs
              : name == "tile" ? limits->multiply_tiles
              : name == "exp"  ? limits->exponentials
              : name == "mix"  ? limits->multiply_and_soften
                               : nullptr;
  if (loop == nullptr) return 0.0;
  return total_rate(seconds, [&](int64_t, int64_t) { return loop; });
}

// to[i] = function(from[i]), as the kernels of `isa` compute it; 0 where they have no such
// function, or do not run here.
MAINBOARD_EXPORT int mainboard_cpu_map(const char* isa, const char* function, const float* from,
                                       float* to, int64_t n) {
  const mainboard::cpu::Kernels* kernels = mainboard::cpu::find_kernels(isa);
  if (kernels == nullptr) return 0;
  for (const auto* f = kernels->limits->functions; f->name != nullptr; ++f) {
    if (f->name != std::string(function)) continue;
    f->map(from, to, n);
    return 1;
  }
  return 0;
}
