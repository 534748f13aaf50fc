// Memory for caches: on huge pages where the system gives them, and on every node of the machine.
#include <cstring>

#include "csrc/common/torch_abi.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mainboard::cpu {
namespace {

constexpr int64_t kHugePage = 2 << 20;

// Asks for huge pages wherever a whole one fits; answers with how many bytes were granted the wish.
int64_t ask_for_huge_pages(char* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const auto address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (address + bytes) / kHugePage * kHugePage;
  if (begin >= end) return 0;
  if (madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE) != 0) return 0;
  return static_cast<int64_t>(end - begin);
#else
  (void)data, (void)bytes;
  return 0;
#endif
}

}  // namespace
}  // namespace mainboard::cpu

// Zeroes fresh memory, each thread an equal share of it in order, after asking for huge pages;
// where nobody touched it before, a share lies on the node of its thread. Returns the bytes asked
// for.
extern "C" __attribute__((visibility("default"))) int64_t mainboard_cpu_prepare(char* data,
                                                                                int64_t bytes) {
  using namespace mainboard;
  const int64_t asked = cpu::ask_for_huge_pages(data, bytes);
  const int64_t pieces = (bytes + cpu::kHugePage - 1) / cpu::kHugePage;
  parallel_for(pieces, 1, [&](int64_t i) {
    const int64_t begin = i * cpu::kHugePage, left = bytes - begin;
    std::memset(data + begin, 0, left < cpu::kHugePage ? left : cpu::kHugePage);
  });
  return asked;
}
