// The checks on arguments that every compiled implementation makes, so that no call of an operator,
// however direct, reads or writes outside its tensors. They are the rules of kernels/validate.py in
// nanoseconds; that file has the words for the caller.
#pragma once

#include "csrc/common/torch_abi.h"

namespace mainboard {

inline void require(bool holds, const char* rule) {
  if (!holds) throw std::invalid_argument(rule);
}

inline bool is_float(DType t) { return t == DType::f32 || t == DType::f16 || t == DType::bf16; }
// What a cache may hold besides its rows' own type. AMD's older kind is for its devices alone.
inline bool is_fp8(DType t) {
#ifdef __HIP__
  if (t == DType::e4m3fnuz || t == DType::e5m2fnuz) return true;
#endif
  return t == DType::e4m3 || t == DType::e5m2;
}
// Whether rows of `t` are kept as `stored`; int8 where the library has it.
inline bool is_stored_as(DType t, DType stored, bool int8) {
  return stored == t || is_fp8(stored) || (int8 && stored == DType::i8);
}

inline bool is_rows(const Tensor& t, int64_t dims) {
  return t.dim() == dims && (t.stride(dims - 1) == 1 || t.size(dims - 1) <= 1);
}
inline bool is_contiguous_vector(const Tensor& t) {
  return t.dim() == 1 && (t.size(0) <= 1 || t.stride(0) == 1);
}
inline bool is_index(const std::optional<Tensor>& t, int64_t n) {
  return !t || (t->dtype() == DType::i32 && is_contiguous_vector(*t) && t->size(0) == n);
}
inline bool is_per_head(const std::optional<Tensor>& t, int64_t n, int64_t or_n) {
  return !t || (t->dtype() == DType::f32 && is_contiguous_vector(*t) &&
                (t->size(0) == n || t->size(0) == or_n));
}
inline bool is_page(int64_t size) { return size > 0 && size % 16 == 0; }

inline void check_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                            const std::optional<Tensor>& lse, const Tensor& cu_queries,
                            const std::optional<Tensor>& cu_keys,
                            const std::optional<Tensor>& used_keys,
                            const std::optional<Tensor>& table, bool int8 = false) {
  const int64_t dims = table ? 4 : 3;
  require(is_rows(q, 3) && is_float(q.dtype()), "q is not rows of a served dtype");
  require(is_rows(k, dims) && is_rows(v, dims), "k or v is not rows");
  require(k.dtype() == v.dtype() && is_stored_as(q.dtype(), k.dtype(), int8),
          "k or v has another dtype");
  for (int64_t d = 0; d + 1 < dims; ++d) require(k.size(d) == v.size(d), "v does not fit k");
  require(k.size(dims - 1) == q.size(2), "k does not fit q");
  const int64_t heads = q.size(1), kv_heads = k.size(dims - 2);
  require(heads > 0 && kv_heads > 0 && heads % kv_heads == 0, "heads do not divide");
  require(is_rows(out, 3) && out.dtype() == q.dtype() && out.size(0) == q.size(0) &&
              out.size(1) == heads && out.size(2) == v.size(dims - 1),
          "out does not fit");
  require(!lse || (is_rows(*lse, 2) && lse->dtype() == DType::f32 && lse->size(0) == heads &&
                   lse->size(1) == q.size(0)),
          "lse does not fit");
  require(cu_queries.dtype() == DType::i32 && is_contiguous_vector(cu_queries) &&
              cu_queries.size(0) >= 1,
          "cu_seqlens_q is not a vector of int32");
  const int64_t batch = cu_queries.size(0) - 1;
  require(is_index(cu_keys, batch + 1) && is_index(used_keys, batch), "key lengths do not fit");
  require(cu_keys || (table && used_keys), "key lengths are missing");
  if (!table) return;
  require(is_page(k.size(1)), "the page size is not a multiple of 16");
  require(is_rows(*table, 2) && table->dtype() == DType::i32 && table->size(0) == batch,
          "block_table does not fit");
}

inline void check_attention_options(int64_t left, int64_t right, double softcap, int64_t heads,
                                    int64_t kv_heads, const std::optional<Tensor>& slopes,
                                    const std::optional<Tensor>& sinks,
                                    const std::optional<Tensor>& k_scale,
                                    const std::optional<Tensor>& v_scale, int64_t batch,
                                    const std::optional<Tensor>& flags) {
  require(left >= -1 && right >= -1, "window is out of range");
  require(softcap >= 0.0, "softcap is out of range");
  require(is_per_head(slopes, heads, heads), "alibi_slopes does not fit");
  require(is_per_head(sinks, heads, heads), "sinks does not fit");
  require(is_per_head(k_scale, 1, kv_heads), "k_scale does not fit");
  require(is_per_head(v_scale, 1, kv_heads), "v_scale does not fit");
  require(!flags || (flags->dtype() == DType::b8 && is_contiguous_vector(*flags) &&
                     flags->size(0) == batch),
          "causal_flags does not fit");
}

inline void check_reshape_and_cache(const Tensor& key, const Tensor& value, const Tensor& key_cache,
                                    const Tensor& value_cache, const Tensor& slots,
                                    const std::optional<Tensor>& k_scale,
                                    const std::optional<Tensor>& v_scale, bool int8 = false) {
  const std::pair<const Tensor&, const Tensor&> pairs[] = {{key, key_cache}, {value, value_cache}};
  for (const auto& [rows, cache] : pairs) {
    require(is_rows(rows, 3) && is_float(rows.dtype()), "key or value is not rows");
    require(is_rows(cache, 4) && is_page(cache.size(1)), "a cache is not pages of rows");
    require(is_stored_as(rows.dtype(), cache.dtype(), int8), "a cache has another dtype");
    require(cache.size(2) == rows.size(1) && cache.size(3) == rows.size(2), "a cache does not fit");
  }
  for (int64_t d = 0; d < 3; ++d) {
    require(key_cache.size(d) == value_cache.size(d), "value_cache does not fit key_cache");
  }
  require(slots.dtype() == DType::i64 && is_contiguous_vector(slots) &&
              slots.size(0) <= key.size(0) && slots.size(0) <= value.size(0),
          "slot_mapping does not fit");
  require(is_per_head(k_scale, 1, key.size(1)), "k_scale does not fit");
  require(is_per_head(v_scale, 1, key.size(1)), "v_scale does not fit");
}

inline void check_mla_decode(const Tensor& q, const Tensor& cache, const Tensor& out,
                             const std::optional<Tensor>& lse, const Tensor& cu_queries,
                             const Tensor& used_keys, const Tensor& table,
                             const std::optional<Tensor>& scale, bool int8 = false) {
  require(is_rows(q, 3) && is_float(q.dtype()), "q is not rows of a served dtype");
  require(is_rows(cache, 3) && is_page(cache.size(1)), "kv_cache is not pages of rows");
  require(is_stored_as(q.dtype(), cache.dtype(), int8), "kv_cache has another dtype");
  require(cache.size(2) == q.size(2), "kv_cache does not fit q");
  require(is_rows(out, 3) && out.dtype() == q.dtype() && out.size(0) == q.size(0) &&
              out.size(1) == q.size(1) && out.size(2) > 0 && out.size(2) <= q.size(2),
          "out does not fit");
  require(!lse || (is_rows(*lse, 2) && lse->dtype() == DType::f32 && lse->size(0) == q.size(1) &&
                   lse->size(1) == q.size(0)),
          "lse does not fit");
  require(cu_queries.dtype() == DType::i32 && is_contiguous_vector(cu_queries) &&
              cu_queries.size(0) >= 1,
          "cu_seqlens_q is not a vector of int32");
  const int64_t batch = cu_queries.size(0) - 1;
  require(used_keys.dtype() == DType::i32 && is_contiguous_vector(used_keys) &&
              used_keys.size(0) == batch,
          "seqused_k does not fit");
  require(is_rows(table, 2) && table.dtype() == DType::i32 && table.size(0) == batch,
          "block_table does not fit");
  require(is_per_head(scale, 1, 1), "kv_scale does not fit");
}

inline void check_concat_and_cache_mla(const Tensor& latent, const Tensor& rotary,
                                       const Tensor& cache, const Tensor& slots,
                                       const std::optional<Tensor>& scale, bool int8 = false) {
  require(is_rows(latent, 2) && is_rows(rotary, 2) && is_float(latent.dtype()) &&
              rotary.dtype() == latent.dtype(),
          "kv_c or k_pe is not rows");
  require(is_rows(cache, 3) && is_page(cache.size(1)), "kv_cache is not pages of rows");
  require(is_stored_as(latent.dtype(), cache.dtype(), int8), "kv_cache has another dtype");
  require(cache.size(2) == latent.size(1) + rotary.size(1), "kv_cache does not fit");
  require(slots.dtype() == DType::i64 && is_contiguous_vector(slots) &&
              slots.size(0) <= latent.size(0) && slots.size(0) <= rotary.size(0),
          "slot_mapping does not fit");
  require(is_per_head(scale, 1, 1), "kv_scale does not fit");
}

inline void check_merge(const Tensor& out, const std::optional<Tensor>& out_lse, const Tensor& a,
                        const Tensor& a_lse, const Tensor& b, const Tensor& b_lse) {
  require(is_float(a.dtype()), "a has a dtype that is not served");
  for (const Tensor* t : {&a, &b, &out}) {
    require(is_rows(*t, 3) && t->dtype() == a.dtype(), "a, b or out is not rows of one dtype");
    for (int64_t d = 0; d < 3; ++d) require(t->size(d) == a.size(d), "a, b and out differ");
  }
  for (const Tensor* t : {&a_lse, &b_lse, out_lse ? &*out_lse : &a_lse}) {
    require(t->dtype() == DType::f32 && t->dim() == 2 && t->size(0) == a.size(1) &&
                t->size(1) == a.size(0),
            "a log-sum-exp does not fit");
  }
}

}  // namespace mainboard
