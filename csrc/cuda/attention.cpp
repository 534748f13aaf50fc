// From a call's tensors to a launch of the decode kernel.
#include "csrc/cuda/attention.h"

#include <algorithm>
#include <mutex>
#include <set>
#include <utility>

#include "csrc/common/arguments.h"
#include "csrc/cuda/decode.h"
#include "csrc/cuda/runtime.h"

namespace mainboard::cuda {
namespace {

template <class T>
const T* pointer(const std::optional<Tensor>& t) {
  return t ? t->data<const T>() : nullptr;
}

int scale_stride(const std::optional<Tensor>& t) { return t && t->numel() > 1 ? 1 : 0; }

int side(int64_t size) {
  return size < 0 || size > kUnbounded ? kUnbounded : static_cast<int>(size);
}

bool is_multiple(const Tensor& t, int64_t bytes) {
  const int64_t size = size_of(t.dtype());
  bool whole = reinterpret_cast<uintptr_t>(t.data<void>()) % bytes == 0;
  for (int64_t d = 0; d + 1 < t.dim(); ++d) whole &= t.stride(d) * size % bytes == 0;
  return whole;
}

CacheRows cache_rows(const Tensor& t) {
  const int64_t size = size_of(t.dtype()), paged = t.dim() == 4;
  const int64_t token = t.stride(paged ? 1 : 0) * size;
  require(is_multiple(t, 16), "k's or v's rows do not begin at multiples of 16 bytes");
  require(token < INT32_MAX, "k or v has too long a stride");
  return {t.data<const char>(), paged ? t.stride(0) * size : kBlockKeys * token,
          t.stride(t.dim() - 2) * size, static_cast<int>(token)};
}

Decode describe(const AttentionCall& call) {
  constexpr double kLog2E = 1.4426950408889634;
  require(is_multiple(call.q, 4) && is_multiple(call.out, 8), "q's or out's rows are not aligned");
  Decode a = {};
  a.q = call.q.data<void>();
  a.out = call.out.data<void>();
  a.lse = call.lse ? call.lse->data<float>() : nullptr;
  a.q_token = call.q.stride(0);
  a.q_head = call.q.stride(1);
  a.out_token = call.out.stride(0);
  a.out_head = call.out.stride(1);
  a.lse_head = call.lse ? call.lse->stride(0) : 0;
  a.k = cache_rows(call.k);
  a.v = cache_rows(call.v);
  a.table = pointer<int>(call.table);
  a.table_row = call.table ? call.table->stride(0) : 0;
  a.page_blocks = Divisor(call.table ? static_cast<uint32_t>(call.k.size(1) / kBlockKeys) : 1);
  a.cu_queries = call.cu_queries.data<const int>();
  a.cu_keys = pointer<int>(call.cu_keys);
  a.used_keys = pointer<int>(call.used_keys);
  a.sequences = static_cast<int>(call.cu_queries.size(0) - 1);
  a.heads = static_cast<int>(call.q.size(1));
  a.kv_heads = static_cast<int>(call.k.size(call.k.dim() - 2));
  a.group = Divisor(static_cast<uint32_t>(a.heads / a.kv_heads));
  a.scale_log2 = static_cast<float>(call.scale * kLog2E);
  a.left = side(call.left);
  a.right = side(call.right);
  a.softcap = static_cast<float>(call.softcap);
  a.alibi_slopes = pointer<float>(call.slopes);
  a.sinks = pointer<float>(call.sinks);
  a.k_scale = pointer<float>(call.k_scale);
  a.v_scale = pointer<float>(call.v_scale);
  a.k_scale_stride = scale_stride(call.k_scale);
  a.v_scale_stride = scale_stride(call.v_scale);
  return a;
}

// A kernel asks once on each device for more shared memory than every kernel may have.
void allow_shared_memory(const DecodeKernel& kernel, int device) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> allowed;
  std::lock_guard<std::mutex> lock(mutex);
  if (!allowed.insert({kernel.function, device}).second) return;
  check_cuda(cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  kernel.shared_bytes),
             "cudaFuncSetAttribute");
}

// More pieces than there can be: each sequence's last tile may be partly full.
int64_t most_fixed_pieces(const Decode& a, int64_t tokens, int rows) {
  const int64_t tiles = tokens * a.group.value / rows + a.sequences;
  return tiles * a.kv_heads * kMostPieces;
}

}  // namespace

void attend(const AttentionCall& call) {
  const int64_t tokens = call.q.size(0);
  if (tokens == 0 || call.cu_queries.size(0) == 1) return;
  Decode a = describe(call);
  const int64_t rows = std::max<int64_t>(1, call.most_queries) * a.group.value;
  const DecodeKernel* kernel = find_decode(call.q.dtype(), call.k.dtype(), call.q.size(2), rows);
  require(kernel != nullptr && call.v.size(call.v.dim() - 1) == call.q.size(2),
          "these dtypes or head dimensions are not compiled");
  const OnDevice device(call.q);
  const int grid = device.multiprocessors() * kernel->blocks_per_multiprocessor;
  const int tile_rows = kernel->row_tiles * kTileRows;
  a.slot_rows = static_cast<int>(std::min<int64_t>(rows, tile_rows));
  a.fixed_pieces = call.deterministic;
  const int64_t slots =
      call.deterministic ? most_fixed_pieces(a, tokens, tile_rows) : 2 * int64_t{grid};
  const int64_t slot_floats = a.slot_rows * (call.q.size(2) + 2);
  const int64_t own_counters = call.deterministic ? slots : 0;
  const Tensor workspace = device.allocate(slots * slot_floats + own_counters);
  a.workspace.sums = workspace.data<float>();
  a.workspace.statistics =
      reinterpret_cast<float2*>(a.workspace.sums + slots * a.slot_rows * call.q.size(2));
  if (call.deterministic) {
    a.workspace.counters = reinterpret_cast<int*>(a.workspace.sums + slots * slot_floats);
    check_cuda(
        cudaMemsetAsync(a.workspace.counters, 0, own_counters * sizeof(int), device.stream()),
        "cudaMemsetAsync");
  } else {
    require(grid <= OnDevice::kCounters, "the device has more multiprocessors than expected");
    a.workspace.counters = device.counters();
  }
  allow_shared_memory(*kernel, device.index());
  void* arguments[] = {&a};
  device.launch(grid, 32 * kWarps, kernel->shared_bytes, kernel->function, arguments);
}

}  // namespace mainboard::cuda
