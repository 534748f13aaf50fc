// As much of CUDA as the schedule needs, for a host: a warp of one lane.
#pragma once

#include <algorithm>
#include <cstdint>

#define __device__
#define __host__
#define __CUDACC__
using std::max;
using std::min;

struct float2 {
  float x, y;
};
struct Index {
  unsigned x;
};
inline Index gridDim, blockIdx;

inline uint32_t __umulhi(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(uint64_t{a} * b >> 32);
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
inline void __syncwarp() {}
inline bool __all_sync(unsigned, bool x) { return x; }
inline int __reduce_add_sync(unsigned, int x) { return x; }
inline int __reduce_max_sync(unsigned, int x) { return x; }
inline int __shfl_sync(unsigned, int x, int) { return x; }
inline int __shfl_up_sync(unsigned, int x, int) { return x; }
inline unsigned __ballot_sync(unsigned, bool x) { return x; }
inline int __ffs(int x) { return __builtin_ffs(x); }
