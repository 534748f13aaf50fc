// Keys and values that work items share once one of them has packed them.
#pragma once

#include <cstdint>

namespace mainboard::cpu {

// Chunks of keys and values as a kernel reads them. Whoever comes first to one packs it, and
// whoever comes meanwhile packs it for itself, so that nobody waits.
//
// Builtins, and not std::atomic, whose functions would be compiled for each instruction set under
// one name.
struct SharedChunks {
  int64_t keys = 0;   // of a chunk; 0 where nothing is shared
  int64_t words = 0;  // of a chunk, 32 bits each
  uint32_t* data = nullptr;
  uint8_t* state = nullptr;  // of each chunk, all kUnpacked when a call begins

  static constexpr uint8_t kUnpacked = 0, kClaimed = 1, kPacked = 2;

  uint32_t* at(int64_t chunk) const { return data + chunk * words; }
  // Whether it falls to the caller to pack this chunk, and to publish it.
  bool claim(int64_t chunk) const {
    uint8_t expected = kUnpacked;
    return __atomic_load_n(state + chunk, __ATOMIC_RELAXED) == kUnpacked &&
           __atomic_compare_exchange_n(state + chunk, &expected, kClaimed, false, __ATOMIC_RELAXED,
                                       __ATOMIC_RELAXED);
  }
  void publish(int64_t chunk) const { __atomic_store_n(state + chunk, kPacked, __ATOMIC_RELEASE); }
  bool is_packed(int64_t chunk) const {
    return __atomic_load_n(state + chunk, __ATOMIC_ACQUIRE) == kPacked;
  }
};

}  // namespace mainboard::cpu
