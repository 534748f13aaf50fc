// Chooses one instruction set's kernels when they are first needed.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/cpu/kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mainboard::cpu {

#define MAINBOARD_ISA(isa)      \
  namespace isa {               \
  extern const Kernels kernels; \
  }
#include "isa_list.inc"  // one line per compiled set, best first, written by CMake
#undef MAINBOARD_ISA

namespace {

const Kernels* const kCompiled[] = {
#define MAINBOARD_ISA(isa) &isa::kernels,
#include "isa_list.inc"
#undef MAINBOARD_ISA
};

#if defined(__x86_64__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("fma");
}

// Looking up bytes in a register, which every processor with AMX has.
[[maybe_unused]] bool has_avx512_vbmi() {
  return has_avx512() && __builtin_cpu_supports("avx512vbmi");
}

// AMX must be there and, on Linux, be asked for: its registers are large, and a process that does
// not use them does not pay for them.
[[maybe_unused]] bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  constexpr unsigned kTiles = 1u << 24, kBFloat16 = 1u << 22;
  if ((d & kTiles) == 0 || (d & kBFloat16) == 0) return false;
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) == 0 || (a & (1u << 5)) == 0) return false;
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(2)
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
[[maybe_unused]] bool has_amx_fp16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kFloat16 = 1u << 21;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & kFloat16) != 0 && has_amx();
}
#elif defined(__aarch64__)
bool has_neon_bf16() {
#if defined(__linux__)
  constexpr unsigned long kBFloat16 = 1ul << 14;  // HWCAP2_BF16
  return (getauxval(AT_HWCAP2) & kBFloat16) != 0;
#else
  return false;
#endif
}
#endif

bool runs_here(const std::string& isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
#if defined(MAINBOARD_EMULATED_AMX)
  if (isa == "amx" || isa == "amx_fp16") {
    return has_avx512_vbmi() && __builtin_cpu_supports("avx512bf16");
  }
#else
  if (isa == "amx_fp16") return has_avx512_vbmi() && has_amx_fp16();
  if (isa == "amx") return has_avx512_vbmi() && has_amx();
#endif
  if (isa == "avx512_bf16") return has_avx512() && __builtin_cpu_supports("avx512bf16");
  if (isa == "avx512") return has_avx512();
  // Every processor with AVX2 has F16C; gcc 12 cannot ask for it by name.
  if (isa == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#elif defined(__aarch64__)
  if (isa == "neon") return true;
  if (isa == "neon_bf16") return has_neon_bf16();
#endif
  return isa == "baseline";
}

// What a loop does in a second, at the best of a few tries: none takes longer than 0.2 ms.
double best_rate(double (*loop)()) {
  using Timer = std::chrono::steady_clock;
  double best = 0.0;
  for (int i = 0; i < 5; ++i) {
    const Timer::time_point begin = Timer::now();
    const double done = loop();
    const std::chrono::duration<double> seconds = Timer::now() - begin;
    best = std::max(best, done / seconds.count());
  }
  return best;
}

// Whether kernels that multiply pairs of bfloat16 are worth having. Some processors do so at twice
// the rate of float32, some at half of it, and none says which: it is measured.
bool worth_having(const Kernels& kernels) {
  const Limits& limits = *kernels.limits;
  if (limits.multiply_pairs == nullptr || limits.multiply_tiles != nullptr) return true;
  constexpr double kWorth = 1.25;  // less would not pay for packing the pairs
  return best_rate(limits.multiply_pairs) >= kWorth * best_rate(limits.multiply_add);
}

// The kernels in use, each for what those before it do not serve. A set asked for by name comes
// first whatever it is worth.
std::vector<const Kernels*> choose() {
  const char* name = std::getenv("MAINBOARD_CPU_ISA");
  const bool named = name != nullptr && *name != '\0';
  std::vector<const Kernels*> chosen;
  std::string usable;
  for (const Kernels* kernels : kCompiled) {
    if (!runs_here(kernels->name)) continue;
    usable += std::string(" ") + kernels->name;
    const bool first = chosen.empty() && named;
    if (first ? kernels->name == std::string(name) : worth_having(*kernels)) {
      chosen.push_back(kernels);
    }
  }
  if (!chosen.empty()) return chosen;
  throw std::invalid_argument(std::string("MAINBOARD_CPU_ISA is ") + name +
                              ", which is not compiled in or does not run on this processor; "
                              "usable here:" +
                              usable);
}

const std::vector<const Kernels*>& chosen_kernels() {
  static const std::vector<const Kernels*> chosen = choose();
  return chosen;
}

}  // namespace

const Kernels* find_kernels(const char* name) {
  for (const Kernels* kernels : kCompiled) {
    if (kernels->name == std::string(name) && runs_here(kernels->name)) return kernels;
  }
  return nullptr;
}

const Kernels& active_kernels() { return *chosen_kernels().front(); }

const Kernels& kernels_for(const Attention& a) {
  for (const Kernels* kernels : chosen_kernels()) {
    if (kernels->serves(a)) return *kernels;
  }
  return active_kernels();
}

}  // namespace mainboard::cpu

// What Python asks without a tensor.
#define MAINBOARD_EXPORT extern "C" __attribute__((visibility("default")))
MAINBOARD_EXPORT int mainboard_cpu_runs(const char* isa) {
  return mainboard::cpu::find_kernels(isa) != nullptr;
}
MAINBOARD_EXPORT const char* mainboard_cpu_isa() {
  try {
    return mainboard::cpu::active_kernels().name;
  } catch (const std::invalid_argument&) {
    return "";  // the first operator called says why
  }
}
