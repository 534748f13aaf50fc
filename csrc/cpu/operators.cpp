// The CPU implementations of torch.ops.mainboard.*: arguments in, work shared out, kernels called.
//
// Devices need no check: the dispatcher comes here only when every tensor is on the CPU. What only
// the values can tell is checked too, because reading them is free here.
#include "csrc/cpu/operators.h"

#include <atomic>
#include <memory>
#include <mutex>
#include <stdexcept>

#include "csrc/common/arguments.h"
#include "csrc/cpu/schedule.h"
#include "csrc/cpu/views.h"

namespace mainboard::cpu {
namespace {

thread_local const char* last_ran = "";

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

struct Block {
  std::unique_ptr<uint32_t[]> words;
  int64_t room = 0;
};

// Memory for what items share, on cache lines. It is too much for every thread that ever calls to
// keep: a call has what one before it left, and calls at the same time have their own meanwhile.
class ChunkMemory {
 public:
  explicit ChunkMemory(int64_t words) {
    if (words == 0) return;
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      std::swap(block_, left_);
    }
    const int64_t room = words + kLineWords;
    if (block_.room < room) block_ = {std::unique_ptr<uint32_t[]>(new uint32_t[room]), room};
  }
  ~ChunkMemory() {
    if (block_.room == 0) return;
    const std::lock_guard<std::mutex> guard(mutex_);
    if (block_.room > left_.room) std::swap(block_, left_);
  }
  ChunkMemory(const ChunkMemory&) = delete;
  ChunkMemory& operator=(const ChunkMemory&) = delete;

  uint32_t* words() const {
    constexpr uintptr_t kLine = kLineWords * sizeof(uint32_t);
    const auto address = reinterpret_cast<uintptr_t>(block_.words.get());
    return reinterpret_cast<uint32_t*>((address + kLine - 1) / kLine * kLine);
  }

 private:
  static constexpr int64_t kLineWords = 16;
  inline static std::mutex mutex_;
  inline static Block left_;
  Block block_;
};

void run(Attention a, const Batch& batch, bool deterministic) {
  thread_local Plan plan;
  const Kernels& kernels = kernels_for(a);
  last_ran = kernels.name;
  a.group = heads_together(a, kernels.block_rows);
  a.rows_per_read = kernels.rows_per_read;
  a.shared = kernels.shared_chunks(a);
  const int64_t threads = num_threads();
  make_plan(a, batch, kernels.block_rows, threads, deterministic, &plan);
  const ChunkMemory chunks(static_cast<int64_t>(plan.chunk_states.size()) * a.shared.words);
  a.shared.data = chunks.words();
  a.shared.state = plan.chunk_states.data();
  const int64_t items = static_cast<int64_t>(plan.items.size());
  const int64_t floats = kernels.scratch_floats(a);
  const int64_t workers = items < threads ? items : threads;
  std::atomic<int64_t> next{workers};
  const WorkItem* work = plan.items.data();
  parallel_for(workers, 1, [&](int64_t worker) {
    float* scratch = thread_scratch(floats);
    // Its first item is its own, so that a call like the one before finds its keys in the caches.
    for (int64_t i = worker; i < items; i = next++) kernels.attend(a, work[i], scratch);
  });
  const Join* joins = plan.joins.data();
  parallel_for(static_cast<int64_t>(plan.joins.size()), 1,
               [&](int64_t i) { kernels.join(a, joins[i]); });
}

}  // namespace

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
  const double softcap = in.real();
  a.softcap = static_cast<float>(softcap);
  const auto slopes = in.optional_tensor(), sinks = in.optional_tensor();
  const auto k_scale = in.optional_tensor(), v_scale = in.optional_tensor();
  const bool deterministic = in.boolean();
  const auto flags = in.optional_tensor();
  check_attention(q, k, v, out, lse, cu_queries, cu_keys, used_keys, table, true);
  check_attention_options(left, right, softcap, q.size(1), k.size(k.dim() - 2), slopes, sinks,
                          k_scale, v_scale, cu_queries.size(0) - 1, flags);

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
  batch.right = causal ? 0 : window_side(right);
  batch.causal_flags = pointer<bool>(flags);
  if (table) {
    batch.table = table->data<const int32_t>();
    batch.table_stride = table->stride(0);
    batch.table_width = table->size(1);
    batch.pages = k.size(0);
    batch.page_size = a.page_size = k.size(1);
  }
  run(a, batch, deterministic);
}

// Latent attention is attention whose one key head is a row of the cache, and its values the row's
// front.
void mla_decode(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  const Tensor q = in.tensor(), cache = in.tensor(), out = in.tensor();
  const auto lse = in.optional_tensor();
  const Tensor cu_queries = in.tensor(), used_keys = in.tensor(), table = in.tensor();
  in.integer();
  in.integer();
  Attention a;
  a.scale = static_cast<float>(in.real());
  const bool causal = in.boolean();
  const auto scale = in.optional_tensor();
  const bool deterministic = in.boolean();
  check_mla_decode(q, cache, out, lse, cu_queries, used_keys, table, scale, true);

  a.q = token_rows(q);
  a.out = token_rows(out);
  a.k = a.v = latent_rows(cache);
  a.lse = lse ? lse->data<float>() : nullptr;
  a.lse_stride = lse ? lse->stride(0) : 0;
  a.heads = q.size(1);
  a.kv_heads = 1;
  a.head_dim = q.size(2);
  a.value_dim = out.size(2);
  a.k_scale = a.v_scale = pointer<float>(scale);

  Batch batch;
  batch.size = cu_queries.size(0) - 1;
  batch.query_tokens = q.size(0);
  batch.cu_queries = cu_queries.data<const int32_t>();
  batch.used_keys = used_keys.data<const int32_t>();
  batch.right = causal ? 0 : kUnbounded;
  batch.table = table.data<const int32_t>();
  batch.table_stride = table.stride(0);
  batch.table_width = table.size(1);
  batch.pages = cache.size(0);
  batch.page_size = a.page_size = cache.size(1);
  run(a, batch, deterministic);
}

namespace {

const Implementations registered = [] {
  Implementations library("CPU");
  library.add("attention", attention)
      .add("reshape_and_cache", reshape_and_cache)
      .add("merge_attention_states", merge_attention_states)
      .add("mla_decode", mla_decode)
      .add("concat_and_cache_mla", concat_and_cache_mla);
  return library;
}();

}  // namespace
}  // namespace mainboard::cpu

// The kernels that this thread's last attention call ran on; empty before the first.
extern "C" __attribute__((visibility("default"))) const char* mainboard_cpu_ran() {
  return mainboard::cpu::last_ran;
}
