#include <algorithm>

#include "csrc/common/arguments.h"
#include "csrc/cuda/cache.h"
#include "csrc/cuda/divisor.h"
#include "csrc/cuda/runtime.h"
#ifndef __HIP__
#include "csrc/cuda/ptx.h"
#include "csrc/cuda/scalar.h"
#endif

namespace mainboard::cuda {
namespace {

constexpr int kThreads = 256;

// Vectors that a thread reads before it writes, where there are many. Where numbers are converted,
// more threads do better than more vectors in each.
template <class From, class To>
constexpr int kInFlight = std::is_same_v<From, To> ? 4 : 1;

template <class T, int n>
struct alignas(sizeof(T) * n) Vector {
  T x[n];
};

__device__ float to_float(float x) { return x; }
__device__ float to_float(__half x) { return __half2float(x); }
__device__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return T(x);  // fp8, saturating
  }
}

// Rows [token, head, dim] of new keys or values, and where they go. Strides in elements.
struct Write {
  const void* from;
  void* to;
  int from_token, from_head, page, slot, head;
  const float* scale;
  int scale_stride;
};

struct Writes {
  Write tensor[2];  // keys and values
  Divisor vectors[2], of_token[2], page_size;
  const int64_t* slots;
  int items[2];   // vectors in all
  int in_flight;  // items of a thread
};

__device__ int64_t offset(int index, int step) { return int64_t{index} * step; }

// Item j of this thread, or -1. Neighbouring threads have neighbouring items.
__device__ int item_of(int j, int in_flight, int items) {
  const int64_t i = (int64_t{blockIdx.x} * in_flight + j) * kThreads + threadIdx.x;
  return j < in_flight && i < items ? static_cast<int>(i) : -1;
}

template <class From, class To, int n>
__device__ Vector<To, n> stored_as(const Vector<From, n>& x, float factor) {
  if constexpr (std::is_same_v<From, To>) {
    return x;
  } else {
    Vector<To, n> y;
#pragma unroll
    for (int j = 0; j < n; ++j) y.x[j] = from_float<To>(to_float(x.x[j]) * factor);
    return y;
  }
}

template <class From, class To, int n>
__global__ void __launch_bounds__(kThreads) write_rows(const __grid_constant__ Writes a) {
  const int which = static_cast<int>(blockIdx.y);
  const Write w = a.tensor[which];
  const Divisor vectors = a.vectors[which], of_token = a.of_token[which];
  const int items = a.items[which];
  wait_for_previous_grid();
  let_next_grid_start();
  const float one_factor = w.scale && w.scale_stride == 0 ? 1.0f / *w.scale : 1.0f;
  constexpr int in_flight = kInFlight<From, To>;
  int64_t slot[in_flight];  // all of them under way before the first is waited for
#pragma unroll
  for (int j = 0; j < in_flight; ++j) {
    const int i = item_of(j, a.in_flight, items);
    slot[j] = i < 0 ? -1 : a.slots[of_token.divide(i)];
  }
  Vector<From, n> x[in_flight];
  Vector<To, n>* to[in_flight];
  float factor[in_flight];
#pragma unroll
  for (int j = 0; j < in_flight; ++j) {
    if (slot[j] < 0) continue;
    const int i = item_of(j, a.in_flight, items);
    const int token = of_token.divide(i);
    const int rest = i - token * static_cast<int>(of_token.value);
    const int head = vectors.divide(rest);
    const int at = (rest - head * static_cast<int>(vectors.value)) * n;
    x[j] = *reinterpret_cast<const Vector<From, n>*>(static_cast<const From*>(w.from) +
                                                     offset(token, w.from_token) +
                                                     offset(head, w.from_head) + at);
    const int place = static_cast<int>(slot[j]), page = a.page_size.divide(place);
    to[j] = reinterpret_cast<Vector<To, n>*>(
        static_cast<To*>(w.to) + offset(page, w.page) +
        offset(place - page * static_cast<int>(a.page_size.value), w.slot) + offset(head, w.head) +
        at);
    factor[j] = w.scale_stride != 0 ? 1.0f / w.scale[head] : one_factor;
  }
#pragma unroll
  for (int j = 0; j < in_flight; ++j) {
    if (slot[j] >= 0) *to[j] = stored_as<From, To, n>(x[j], factor[j]);
  }
}

// How many of at most `most` items each thread takes, so that few still spread over the device.
int in_flight_for(const OnDevice& device, int64_t items, int most) {
  return items < device.multiprocessors() * int64_t{8} * kThreads ? 1 : most;
}

dim3 grid_for(int64_t items, int in_flight, unsigned tensors) {
  const int64_t of_block = int64_t{kThreads} * in_flight;
  return {static_cast<unsigned>((items + of_block - 1) / of_block), tensors, 1};
}

// A stride in elements, short enough for one multiplication; of no matter where there is one entry.
int step_of(const Tensor& t, int64_t d) {
  if (t.size(d) <= 1) return 0;
  const int64_t stride = t.stride(d);
  require(stride >= 0 && stride <= INT32_MAX, "a tensor has too long a stride");
  return static_cast<int>(stride);
}

int counted(int64_t items) {
  require(items < INT32_MAX, "more is written at once than the kernel can count");
  return static_cast<int>(items);
}

// Whether every row begins at a multiple of `bytes` and holds a multiple of them.
bool in_vectors(const Tensor& t, int64_t bytes) {
  const int64_t size = size_of(t.dtype());
  bool whole = reinterpret_cast<uintptr_t>(t.data<void>()) % bytes == 0;
  whole &= t.size(t.dim() - 1) * size % bytes == 0;
  for (int64_t d = 0; d + 1 < t.dim(); ++d) whole &= t.stride(d) * size % bytes == 0;
  return whole;
}

Write describe(const Tensor& rows, const Tensor& cache, const std::optional<Tensor>& scale) {
  return {rows.data<void>(),
          cache.data<void>(),
          step_of(rows, 0),
          step_of(rows, 1),
          step_of(cache, 0),
          step_of(cache, 1),
          step_of(cache, 2),
          scale ? scale->data<const float>() : nullptr,
          scale && scale->numel() > 1 ? 1 : 0};
}

// `widths` are the vectors of a row of each.
void launch_writes(const Write (&both)[2], const int64_t (&widths)[2], const Tensor& slots,
                   int64_t heads, const Tensor& cache, const OnDevice& device, int in_flight,
                   void (*kernel)(Writes)) {
  Writes a = {};
  for (int i = 0; i < 2; ++i) {
    a.tensor[i] = both[i];
    a.items[i] = counted(slots.size(0) * heads * widths[i]);
    a.vectors[i] = Divisor(static_cast<uint32_t>(std::max<int64_t>(1, widths[i])));
    a.of_token[i] = Divisor(static_cast<uint32_t>(std::max<int64_t>(1, heads * widths[i])));
  }
  require(cache.size(0) * cache.size(1) < INT32_MAX, "a cache has more slots than are counted");
  a.page_size = Divisor(static_cast<uint32_t>(cache.size(1)));
  a.slots = slots.data<const int64_t>();
  const int64_t most = std::max(a.items[0], a.items[1]);
  a.in_flight = in_flight_for(device, 2 * most, in_flight);
  device.launch(grid_for(most, a.in_flight, 2), kThreads, 0, kernel, a);
}

template <class From, class To>
void write_as(const Tensor& key, const Tensor& value, const Tensor& key_cache,
              const Tensor& value_cache, const Tensor& slots, const std::optional<Tensor>& k_scale,
              const std::optional<Tensor>& v_scale) {
  constexpr int n = 16 / sizeof(From);
  const bool vectors = in_vectors(key, 16) && in_vectors(value, 16) &&
                       in_vectors(key_cache, n * sizeof(To)) &&
                       in_vectors(value_cache, n * sizeof(To));
  const int width = vectors ? n : 1;
  const Write both[2] = {describe(key, key_cache, k_scale), describe(value, value_cache, v_scale)};
  const int64_t widths[2] = {key.size(2) / width, value.size(2) / width};
  launch_writes(both, widths, slots, key.size(1), key_cache, OnDevice(key), kInFlight<From, To>,
                vectors ? write_rows<From, To, n> : write_rows<From, To, 1>);
}

// Calls `body` with a value of the type that a cache of `dtype` holds for rows of From.
template <class From, class Body>
void with_stored_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::e4m3:
      return body(E4M3());
    case DType::e5m2:
      return body(E5M2());
#ifdef __HIP__
    case DType::e4m3fnuz:
      return body(E4M3Fnuz());
    case DType::e5m2fnuz:
      return body(E5M2Fnuz());
#endif
    default:
      return body(From());
  }
}

template <class From, class... Arguments>
void write_from(const Tensor& key, const Tensor& value, const Tensor& key_cache,
                const Arguments&... rest) {
  with_stored_type<From>(key_cache.dtype(), [&](auto stored) {
    write_as<From, decltype(stored)>(key, value, key_cache, rest...);
  });
}

// Two partial results of the same rows, [token, head, dim]; strides in elements.
struct Merge {
  const void *a, *b;
  void* out;
  const float *a_lse, *b_lse;
  float* out_lse;
  int a_token, a_head, b_token, b_head, out_token, out_head;
  int a_lse_head, a_lse_token, b_lse_head, b_lse_token, out_lse_head, out_lse_token;
  Divisor vectors, of_head, of_group;  // vectors of a row, of a group's head, of a group of tokens
  int tokens;
};

// Tokens of a head follow each other in groups of 8, whose log-sum-exps are one sector of memory.
constexpr int kGroupTokens = 8;

// A vector of the join: where it is.
struct MergeItem {
  int token, head, vector;
  bool used;

  __device__ MergeItem(const Merge& m, int i) {
    const int group = m.of_group.divide(i);
    int rest = i - group * static_cast<int>(m.of_group.value);
    head = m.of_head.divide(rest);
    rest -= head * static_cast<int>(m.of_head.value);
    const int in_group = m.vectors.divide(rest);
    vector = rest - in_group * static_cast<int>(m.vectors.value);
    token = group * kGroupTokens + in_group;
    used = token < m.tokens;  // of the groups there are
  }
};

template <class T, int n>
__global__ void __launch_bounds__(kThreads) merge_rows(const __grid_constant__ Merge m) {
  wait_for_previous_grid();
  let_next_grid_start();
  using V = Vector<T, n>;
  const MergeItem at(m, static_cast<int>(blockIdx.x * kThreads + threadIdx.x));
  if (!at.used) return;
  const float a_lse = m.a_lse[offset(at.head, m.a_lse_head) + offset(at.token, m.a_lse_token)];
  const float b_lse = m.b_lse[offset(at.head, m.b_lse_head) + offset(at.token, m.b_lse_token)];
  V x = {}, y = {}, z;
  // A part without keys may hold anything: it is not read.
  if (a_lse > -INFINITY) {
    x = *reinterpret_cast<const V*>(static_cast<const T*>(m.a) + offset(at.token, m.a_token) +
                                    offset(at.head, m.a_head) + at.vector * n);
  }
  if (b_lse > -INFINITY) {
    y = *reinterpret_cast<const V*>(static_cast<const T*>(m.b) + offset(at.token, m.b_token) +
                                    offset(at.head, m.b_head) + at.vector * n);
  }
  const float most = fmaxf(a_lse, b_lse);
  float a_part = a_lse == -INFINITY ? 0.0f : __expf(a_lse - most);
  float b_part = b_lse == -INFINITY ? 0.0f : __expf(b_lse - most);
  const float total = a_part + b_part;
  const float scale = total > 0.0f ? __fdividef(1.0f, total) : 0.0f;
  a_part *= scale;
  b_part *= scale;
#pragma unroll
  for (int k = 0; k < n; ++k) {
    z.x[k] = from_float<T>(to_float(x.x[k]) * a_part + to_float(y.x[k]) * b_part);
  }
  *reinterpret_cast<V*>(static_cast<T*>(m.out) + offset(at.token, m.out_token) +
                        offset(at.head, m.out_head) + at.vector * n) = z;
  if (m.out_lse && at.vector == 0) {
    m.out_lse[offset(at.head, m.out_lse_head) + offset(at.token, m.out_lse_token)] =
        total > 0.0f ? most + __logf(total) : -INFINITY;
  }
}

template <class T>
void merge_as(const Tensor& out, const std::optional<Tensor>& out_lse, const Tensor& a,
              const Tensor& a_lse, const Tensor& b, const Tensor& b_lse) {
  constexpr int n = 16 / sizeof(T);
  const bool vectors = in_vectors(a, 16) && in_vectors(b, 16) && in_vectors(out, 16);
  const int64_t width = a.size(2) / (vectors ? n : 1);
  const int64_t of_group = kGroupTokens * a.size(1) * width;
  const int64_t groups = (a.size(0) + kGroupTokens - 1) / kGroupTokens;
  const Merge m = {a.data<void>(),
                   b.data<void>(),
                   out.data<void>(),
                   a_lse.data<float>(),
                   b_lse.data<float>(),
                   out_lse ? out_lse->data<float>() : nullptr,
                   step_of(a, 0),
                   step_of(a, 1),
                   step_of(b, 0),
                   step_of(b, 1),
                   step_of(out, 0),
                   step_of(out, 1),
                   step_of(a_lse, 0),
                   step_of(a_lse, 1),
                   step_of(b_lse, 0),
                   step_of(b_lse, 1),
                   out_lse ? step_of(*out_lse, 0) : 0,
                   out_lse ? step_of(*out_lse, 1) : 0,
                   Divisor(static_cast<uint32_t>(width)),
                   Divisor(static_cast<uint32_t>(kGroupTokens * width)),
                   Divisor(static_cast<uint32_t>(of_group)),
                   static_cast<int>(a.size(0))};
  OnDevice(a).launch(grid_for(counted(groups * of_group), 1, 1), kThreads, 0,
                     vectors ? merge_rows<T, n> : merge_rows<T, 1>, m);
}

// One part of a latent row, [token, dim], and the columns of the cache from `column` on.
Write describe_latent(const Tensor& part, const Tensor& cache, int64_t column,
                      const std::optional<Tensor>& scale) {
  return {part.data<void>(),
          cache.data<char>() + column * size_of(cache.dtype()),
          step_of(part, 0),
          0,
          step_of(cache, 0),
          step_of(cache, 1),
          0,
          scale ? scale->data<const float>() : nullptr,
          0};
}

template <class From, class To>
void write_latent_as(const Tensor& latent, const Tensor& rotary, const Tensor& cache,
                     const Tensor& slots, const std::optional<Tensor>& scale) {
  constexpr int n = 16 / sizeof(From);
  const int64_t start = latent.size(1);
  const bool vectors = in_vectors(latent, 16) && in_vectors(rotary, 16) &&
                       in_vectors(cache, n * sizeof(To)) && start % n == 0;
  const int width = vectors ? n : 1;
  const Write both[2] = {describe_latent(latent, cache, 0, scale),
                         describe_latent(rotary, cache, start, scale)};
  const int64_t widths[2] = {latent.size(1) / width, rotary.size(1) / width};
  launch_writes(both, widths, slots, 1, cache, OnDevice(latent), kInFlight<From, To>,
                vectors ? write_rows<From, To, n> : write_rows<From, To, 1>);
}

template <class From>
void write_latent_from(const Tensor& latent, const Tensor& rotary, const Tensor& cache,
                       const Tensor& slots, const std::optional<Tensor>& scale) {
  with_stored_type<From>(cache.dtype(), [&](auto stored) {
    write_latent_as<From, decltype(stored)>(latent, rotary, cache, slots, scale);
  });
}

}  // namespace

void write_latent(const Tensor& latent, const Tensor& rotary, const Tensor& cache,
                  const Tensor& slots, const std::optional<Tensor>& scale) {
  if (slots.numel() == 0) return;
  if (latent.dtype() == DType::f32) {
    write_latent_from<float>(latent, rotary, cache, slots, scale);
  } else if (latent.dtype() == DType::f16) {
    write_latent_from<__half>(latent, rotary, cache, slots, scale);
  } else {
    write_latent_from<__nv_bfloat16>(latent, rotary, cache, slots, scale);
  }
}

void write_to_cache(const Tensor& key, const Tensor& value, const Tensor& key_cache,
                    const Tensor& value_cache, const Tensor& slots,
                    const std::optional<Tensor>& k_scale, const std::optional<Tensor>& v_scale) {
  require(key.dtype() == value.dtype() && key_cache.dtype() == value_cache.dtype(),
          "key and value have two dtypes");
  if (slots.numel() == 0 || key.numel() + value.numel() == 0) return;
  if (key.dtype() == DType::f32) {
    write_from<float>(key, value, key_cache, value_cache, slots, k_scale, v_scale);
  } else if (key.dtype() == DType::f16) {
    write_from<__half>(key, value, key_cache, value_cache, slots, k_scale, v_scale);
  } else {
    write_from<__nv_bfloat16>(key, value, key_cache, value_cache, slots, k_scale, v_scale);
  }
}

void merge_states(const Tensor& out, const std::optional<Tensor>& out_lse, const Tensor& a,
                  const Tensor& a_lse, const Tensor& b, const Tensor& b_lse) {
  if (out.numel() == 0) return;
  if (a.dtype() == DType::f32) {
    merge_as<float>(out, out_lse, a, a_lse, b, b_lse);
  } else if (a.dtype() == DType::f16) {
    merge_as<__half>(out, out_lse, a, a_lse, b, b_lse);
  } else {
    merge_as<__nv_bfloat16>(out, out_lse, a, a_lse, b, b_lse);
  }
}

}  // namespace mainboard::cuda
