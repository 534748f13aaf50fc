#include <algorithm>

#include "csrc/common/arguments.h"
#include "csrc/cuda/cache.h"
#include "csrc/cuda/runtime.h"
#ifndef __HIP__
#include "csrc/cuda/ptx.h"
#include "csrc/cuda/scalar.h"
#endif

namespace mainboard::cuda {
namespace {

constexpr int kThreads = 256;

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
  int64_t from_token, from_head, page, slot, head;
  int vectors;  // of a row
  const float* scale;
  int scale_stride;
};

struct Writes {
  Write tensor[2];  // keys and values
  const int64_t* slots;
  int64_t tokens;
  int heads, page_size;
};

template <class From, class To, int n>
__global__ void __launch_bounds__(kThreads) write_rows(const __grid_constant__ Writes a) {
  const Write& w = a.tensor[blockIdx.y];
  wait_for_previous_grid();
  let_next_grid_start();
  const int of_token = a.heads * w.vectors;
  const int64_t all = a.tokens * of_token;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < all;
       i += int64_t{kThreads} * gridDim.x) {
    const int64_t token = i / of_token;
    const int rest = static_cast<int>(i - token * of_token);
    const int head = rest / w.vectors, at = (rest - head * w.vectors) * n;
    const int64_t slot = a.slots[token];
    if (slot < 0) continue;
    const int64_t page = slot / a.page_size;
    const auto& from = *reinterpret_cast<const Vector<From, n>*>(
        static_cast<const From*>(w.from) + token * w.from_token + head * w.from_head + at);
    auto& to = *reinterpret_cast<Vector<To, n>*>(static_cast<To*>(w.to) + page * w.page +
                                                 (slot - page * a.page_size) * w.slot +
                                                 head * w.head + at);
    if constexpr (std::is_same_v<From, To>) {
      to = from;
    } else {
      const Vector<From, n> x = from;
      const float factor = w.scale ? 1.0f / w.scale[head * w.scale_stride] : 1.0f;
      Vector<To, n> y;
#pragma unroll
      for (int j = 0; j < n; ++j) y.x[j] = from_float<To>(to_float(x.x[j]) * factor);
      to = y;
    }
  }
}

int grid_for(const OnDevice& device, int64_t threads) {
  const int64_t most = device.multiprocessors() * int64_t{8};
  return static_cast<int>(
      std::max<int64_t>(1, std::min<int64_t>(most, (threads + kThreads - 1) / kThreads)));
}

// Whether every row begins at a multiple of `bytes` and holds a multiple of them.
bool in_vectors(const Tensor& t, int64_t bytes) {
  const int64_t size = size_of(t.dtype());
  bool whole = reinterpret_cast<uintptr_t>(t.data<void>()) % bytes == 0;
  whole &= t.size(t.dim() - 1) * size % bytes == 0;
  for (int64_t d = 0; d + 1 < t.dim(); ++d) whole &= t.stride(d) * size % bytes == 0;
  return whole;
}

Write describe(const Tensor& rows, const Tensor& cache, const std::optional<Tensor>& scale, int n) {
  return {rows.data<void>(),
          cache.data<void>(),
          rows.stride(0),
          rows.stride(1),
          cache.stride(0),
          cache.stride(1),
          cache.stride(2),
          static_cast<int>(rows.size(2) / n),
          scale ? scale->data<const float>() : nullptr,
          scale && scale->numel() > 1 ? 1 : 0};
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
  Writes a = {
      {describe(key, key_cache, k_scale, width), describe(value, value_cache, v_scale, width)},
      slots.data<const int64_t>(),
      slots.size(0),
      static_cast<int>(key.size(1)),
      static_cast<int>(key_cache.size(1))};
  const OnDevice device(key);
  const int64_t threads = a.tokens * a.heads * std::max(a.tensor[0].vectors, a.tensor[1].vectors);
  const dim3 grid(grid_for(device, threads), 2);
  device.launch(grid, kThreads, 0, vectors ? write_rows<From, To, n> : write_rows<From, To, 1>, a);
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
  int64_t a_token, a_head, b_token, b_head, out_token, out_head;
  int64_t a_lse_head, a_lse_token, b_lse_head, b_lse_token, out_lse_head, out_lse_token;
  int64_t tokens;
  int heads, vectors;
};

template <class T, int n>
__global__ void __launch_bounds__(kThreads) merge_rows(const __grid_constant__ Merge m) {
  wait_for_previous_grid();
  let_next_grid_start();
  const int of_token = m.heads * m.vectors;
  const int64_t all = m.tokens * of_token;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < all;
       i += int64_t{kThreads} * gridDim.x) {
    const int64_t token = i / of_token;
    const int rest = static_cast<int>(i - token * of_token);
    const int head = rest / m.vectors, vector = rest - head * m.vectors, at = vector * n;
    const float a_lse = m.a_lse[head * m.a_lse_head + token * m.a_lse_token];
    const float b_lse = m.b_lse[head * m.b_lse_head + token * m.b_lse_token];
    const float most = fmaxf(a_lse, b_lse);
    const float a_part = a_lse == -INFINITY ? 0.0f : expf(a_lse - most);
    const float b_part = b_lse == -INFINITY ? 0.0f : expf(b_lse - most);
    const float total = a_part + b_part, scale = total > 0.0f ? 1.0f / total : 0.0f;
    using V = Vector<T, n>;
    V x = {}, y = {}, z;
    // A part without keys may hold anything: it is not read.
    if (a_part > 0.0f) {
      x = *reinterpret_cast<const V*>(static_cast<const T*>(m.a) + token * m.a_token +
                                      head * m.a_head + at);
    }
    if (b_part > 0.0f) {
      y = *reinterpret_cast<const V*>(static_cast<const T*>(m.b) + token * m.b_token +
                                      head * m.b_head + at);
    }
#pragma unroll
    for (int j = 0; j < n; ++j) {
      z.x[j] =
          from_float<T>(to_float(x.x[j]) * (a_part * scale) + to_float(y.x[j]) * (b_part * scale));
    }
    *reinterpret_cast<V*>(static_cast<T*>(m.out) + token * m.out_token + head * m.out_head + at) =
        z;
    if (m.out_lse && vector == 0) {
      m.out_lse[head * m.out_lse_head + token * m.out_lse_token] =
          total > 0.0f ? most + logf(total) : -INFINITY;
    }
  }
}

template <class T>
void merge_as(const Tensor& out, const std::optional<Tensor>& out_lse, const Tensor& a,
              const Tensor& a_lse, const Tensor& b, const Tensor& b_lse) {
  constexpr int n = 16 / sizeof(T);
  const bool vectors = in_vectors(a, 16) && in_vectors(b, 16) && in_vectors(out, 16);
  const Merge m = {a.data<void>(),
                   b.data<void>(),
                   out.data<void>(),
                   a_lse.data<float>(),
                   b_lse.data<float>(),
                   out_lse ? out_lse->data<float>() : nullptr,
                   a.stride(0),
                   a.stride(1),
                   b.stride(0),
                   b.stride(1),
                   out.stride(0),
                   out.stride(1),
                   a_lse.stride(0),
                   a_lse.stride(1),
                   b_lse.stride(0),
                   b_lse.stride(1),
                   out_lse ? out_lse->stride(0) : 0,
                   out_lse ? out_lse->stride(1) : 0,
                   a.size(0),
                   static_cast<int>(a.size(1)),
                   static_cast<int>(a.size(2) / (vectors ? n : 1))};
  const OnDevice device(a);
  const dim3 grid(grid_for(device, m.tokens * m.heads * m.vectors));
  device.launch(grid, kThreads, 0, vectors ? merge_rows<T, n> : merge_rows<T, 1>, m);
}

// One part of a latent row, [token, dim], and the columns of the cache from `column` on.
Write describe_latent(const Tensor& part, const Tensor& cache, int64_t column,
                      const std::optional<Tensor>& scale, int n) {
  return {part.data<void>(),
          cache.data<char>() + column * size_of(cache.dtype()),
          part.stride(0),
          0,
          cache.stride(0),
          cache.stride(1),
          0,
          static_cast<int>(part.size(1) / n),
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
  Writes a = {{describe_latent(latent, cache, 0, scale, width),
               describe_latent(rotary, cache, start, scale, width)},
              slots.data<const int64_t>(),
              slots.size(0),
              1,
              static_cast<int>(cache.size(1))};
  const OnDevice device(latent);
  const dim3 grid(grid_for(device, a.tokens * a.tensor[0].vectors), 2);
  device.launch(grid, kThreads, 0, vectors ? write_rows<From, To, n> : write_rows<From, To, 1>, a);
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
