// The CPU implementations of torch.ops.mainboard.*: arguments in, work shared out, kernels called.
//
// Devices need no check: the dispatcher comes here only when every tensor is on the CPU. What only
// the values can tell is checked too, because reading them is free here.
#include <atomic>
#include <stdexcept>

#include "csrc/common/arguments.h"
#include "csrc/common/torch_abi.h"
#include "csrc/cpu/kernels.h"
#include "csrc/cpu/schedule.h"

namespace mainboard::cpu {
namespace {

constexpr int64_t kCopyGrain = 16;  // rows one thread should at least move

// q, out and dense k, v: [tokens, heads, dim].
Rows token_rows(const Tensor& t) {
  return {t.data<char>(), t.dtype(), t.stride(0), 0, t.stride(1)};
}
// Caches: [pages, page_size, heads, dim].
Rows page_rows(const Tensor& t) {
  return {t.data<char>(), t.dtype(), t.stride(0), t.stride(1), t.stride(2)};
}

template <class T>
const T* pointer(const std::optional<Tensor>& t) {
  return t ? t->data<const T>() : nullptr;
}

// 1 when there is a scale for each head, 0 when one serves all.
int64_t scale_stride(const std::optional<Tensor>& t) { return t && t->numel() > 1 ? 1 : 0; }

int64_t window_side(int64_t size) { return size < 0 ? kUnbounded : size; }

// This thread's working memory, aligned to a cache line; it grows and is kept.
float* thread_scratch(int64_t floats) {
  constexpr int64_t kLine = 64;
  thread_local std::vector<char> memory;
  const int64_t bytes = floats * static_cast<int64_t>(sizeof(float)) + kLine;
  if (static_cast<int64_t>(memory.size()) < bytes) memory.resize(bytes);
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  return reinterpret_cast<float*>((address + kLine - 1) / kLine * kLine);
}

void run(Attention a, const Batch& batch, bool deterministic) {
  thread_local Plan plan;
  const Kernels& kernels = kernels_for(a);
  a.group = heads_together(a, kernels.block_rows);
  const int64_t threads = num_threads();
  make_plan(a, batch, kernels.block_rows, threads, deterministic, &plan);
  const int64_t items = static_cast<int64_t>(plan.items.size());
  const int64_t floats = kernels.scratch_floats(a);
  std::atomic<int64_t> next{0};
  const WorkItem* work = plan.items.data();
  parallel_for(items < threads ? items : threads, 1, [&](int64_t) {
    float* scratch = thread_scratch(floats);
    for (int64_t i = next++; i < items; i = next++) kernels.attend(a, work[i], scratch);
  });
  const Join* joins = plan.joins.data();
  parallel_for(static_cast<int64_t>(plan.joins.size()), 1,
               [&](int64_t i) { kernels.join(a, joins[i]); });
}

void attention(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  const Tensor q = in.tensor(), k = in.tensor(), v = in.tensor(), out = in.tensor();
  const auto lse = in.optional_tensor();
  const Tensor cu_queries = in.tensor();
  const auto cu_keys = in.optional_tensor(), used_keys = in.optional_tensor();
  const auto table = in.optional_tensor();
  in.integer();  // max_seqlen_q and max_seqlen_k are for devices that cannot read the lengths
  in.integer();
  Attention a;
  a.scale = static_cast<float>(in.real());
  const bool causal = in.boolean();
  const int64_t left = in.integer(), right = in.integer();
  a.left = window_side(left);
  a.right = causal ? 0 : window_side(right);
  const double softcap = in.real();
  a.softcap = static_cast<float>(softcap);
  const auto slopes = in.optional_tensor(), sinks = in.optional_tensor();
  const auto k_scale = in.optional_tensor(), v_scale = in.optional_tensor();
  const bool deterministic = in.boolean();
  check_attention(q, k, v, out, lse, cu_queries, cu_keys, used_keys, table);
  check_attention_options(left, right, softcap, q.size(1), k.size(k.dim() - 2), slopes, sinks,
                          k_scale, v_scale);

  a.q = token_rows(q);
  a.out = token_rows(out);
  a.k = table ? page_rows(k) : token_rows(k);
  a.v = table ? page_rows(v) : token_rows(v);
  a.lse = lse ? lse->data<float>() : nullptr;
  a.lse_stride = lse ? lse->stride(0) : 0;
  a.heads = q.size(1);
  a.kv_heads = k.size(k.dim() - 2);
  a.head_dim = q.size(2);
  a.value_dim = v.size(v.dim() - 1);
  a.alibi_slopes = pointer<float>(slopes);
  a.sinks = pointer<float>(sinks);
  a.k_scale = pointer<float>(k_scale);
  a.v_scale = pointer<float>(v_scale);
  a.k_scale_stride = scale_stride(k_scale);
  a.v_scale_stride = scale_stride(v_scale);

  Batch batch;
  batch.size = cu_queries.size(0) - 1;
  batch.query_tokens = q.size(0);
  batch.key_tokens = table ? 0 : k.size(0);
  batch.cu_queries = cu_queries.data<const int32_t>();
  batch.cu_keys = pointer<int32_t>(cu_keys);
  batch.used_keys = pointer<int32_t>(used_keys);
  if (table) {
    batch.table = table->data<const int32_t>();
    batch.table_stride = table->stride(0);
    batch.table_width = table->size(1);
    batch.pages = k.size(0);
    batch.page_size = a.page_size = k.size(1);
  }
  run(a, batch, deterministic);
}

void reshape_and_cache(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  const Tensor key = in.tensor(), value = in.tensor();
  const Tensor key_cache = in.tensor(), value_cache = in.tensor(), slots = in.tensor();
  const auto k_scale = in.optional_tensor(), v_scale = in.optional_tensor();
  check_reshape_and_cache(key, value, key_cache, value_cache, slots, k_scale, v_scale);
  const Kernels& kernels = active_kernels();
  const int64_t tokens = slots.size(0), heads = key.size(1), page = key_cache.size(1);
  const int64_t room = key_cache.size(0) * page;
  const int64_t* slot = slots.data<const int64_t>();
  for (int64_t t = 0; t < tokens; ++t) {
    if (slot[t] < -1 || slot[t] >= room) {
      throw std::invalid_argument("slot_mapping[" + std::to_string(t) + "] is " +
                                  std::to_string(slot[t]) + "; expected -1 to skip, or 0 to " +
                                  std::to_string(room - 1));
    }
  }
  auto write = [&](const Tensor& source, const Tensor& cache, const std::optional<Tensor>& scale,
                   int64_t t) {
    const Rows from = token_rows(source), to = page_rows(cache);
    const float* scales = pointer<float>(scale);
    for (int64_t h = 0; h < heads; ++h) {
      const float factor = scales == nullptr ? 1.0f : 1.0f / scales[h * scale_stride(scale)];
      kernels.copy_row(from.dtype, from.at(t, 0, h), to.dtype,
                       to.at(slot[t] / page, slot[t] % page, h), source.size(2), factor);
    }
  };
  parallel_for(tokens, kCopyGrain, [&](int64_t t) {
    if (slot[t] < 0) return;
    write(key, key_cache, k_scale, t);
    write(value, value_cache, v_scale, t);
  });
}

void merge_attention_states(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  const Tensor out = in.tensor();
  const auto out_lse = in.optional_tensor();
  const Tensor a = in.tensor(), a_lse = in.tensor(), b = in.tensor(), b_lse = in.tensor();
  check_merge(out, out_lse, a, a_lse, b, b_lse);
  const Kernels& kernels = active_kernels();
  const Rows to = token_rows(out), from_a = token_rows(a), from_b = token_rows(b);
  const int64_t heads = out.size(1), dim = out.size(2);
  parallel_for(out.size(0), kCopyGrain, [&](int64_t t) {
    for (int64_t h = 0; h < heads; ++h) {
      const char* rows[2] = {from_a.at(t, 0, h), from_b.at(t, 0, h)};
      const float lse[2] = {a_lse.data<float>()[h * a_lse.stride(0) + t * a_lse.stride(1)],
                            b_lse.data<float>()[h * b_lse.stride(0) + t * b_lse.stride(1)]};
      float* merged = nullptr;
      if (out_lse)
        merged = out_lse->data<float>() + h * out_lse->stride(0) + t * out_lse->stride(1);
      kernels.merge(lse, 2, dim, to.dtype, rows, to.at(t, 0, h), merged);
    }
  });
}

const Implementations registered = [] {
  Implementations library("CPU");
  library.add("attention", attention)
      .add("reshape_and_cache", reshape_and_cache)
      .add("merge_attention_states", merge_attention_states);
  return library;
}();

}  // namespace
}  // namespace mainboard::cpu
