// From a call's tensors to a launch of the decode kernel.
#include "csrc/cuda/attention.h"

#include <algorithm>

#include "csrc/common/arguments.h"
#include "csrc/cuda/clusters.h"
#include "csrc/cuda/decode.h"
#include "csrc/cuda/prefill_launch.h"
#include "csrc/cuda/runtime.h"

namespace mainboard::cuda {
namespace {

constexpr double kLog2E = 1.4426950408889634;

template <class T>
const T* pointer(const std::optional<Tensor>& t) {
  return t ? t->data<const T>() : nullptr;
}

int scale_stride(const std::optional<Tensor>& t) { return t && t->numel() > 1 ? 1 : 0; }

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

void describe_queries(const Tensor& q, const Tensor& out, const std::optional<Tensor>& lse,
                      const Tensor& cu_queries, Decode* a) {
  a->q = q.data<void>();
  a->out = out.data<void>();
  a->lse = lse ? lse->data<float>() : nullptr;
  a->q_token = q.stride(0);
  a->q_head = q.stride(1);
  a->out_token = out.stride(0);
  a->out_head = out.stride(1);
  a->lse_head = lse ? lse->stride(0) : 0;
  a->cu_queries = cu_queries.data<const int>();
  a->sequences = static_cast<int>(cu_queries.size(0) - 1);
  a->heads = static_cast<int>(q.size(1));
}

Decode describe(const AttentionCall& call) {
  require(is_multiple(call.q, 4) && is_multiple(call.out, 8), "q's or out's rows are not aligned");
  Decode a = {};
  describe_queries(call.q, call.out, call.lse, call.cu_queries, &a);
  a.k = cache_rows(call.k);
  a.v = cache_rows(call.v);
  a.table = pointer<int>(call.table);
  a.table_row = call.table ? call.table->stride(0) : 0;
  a.table_columns = call.table ? static_cast<int>(call.table->size(1)) : 0;
  a.page_blocks = Divisor(call.table ? static_cast<uint32_t>(call.k.size(1) / kBlockKeys) : 1);
  a.cu_keys = pointer<int>(call.cu_keys);
  a.used_keys = pointer<int>(call.used_keys);
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
  a.fixed_pieces = call.deterministic;
  return a;
}

// More pieces than there can be: each sequence's last tile may be partly full.
int64_t most_fixed_pieces(const Decode& a, int64_t tokens, int rows) {
  const int64_t tiles = tokens * a.group.value / rows + a.sequences;
  return tiles * a.kv_heads * kMostPieces;
}

// Allocates what the blocks share, with counters that are zero.
Tensor lay_out(Decode* a, const OnDevice& device, int grid, int64_t tokens, int64_t dim, int rows) {
  const bool fixed = a->fixed_pieces != 0;
  const int64_t slots = fixed ? most_fixed_pieces(*a, tokens, rows) : 2 * int64_t{grid};
  Workspace& w = a->workspace;
  w.rows = slots * a->slot_rows;
  const int64_t sums = w.rows * dim, statistics = 2 * 2 * w.rows;
  Tensor memory = device.allocate(sums + statistics + (fixed ? slots : 0));
  w.sums = memory.data<float>();
  w.statistics = reinterpret_cast<float2*>(w.sums + sums);
  if (fixed) {
    w.counters = reinterpret_cast<int*>(w.sums + sums + statistics);
    check_cuda(cudaMemsetAsync(w.counters, 0, slots * sizeof(int), device.stream()),
               "cudaMemsetAsync");
  } else {
    require(3 * grid <= OnDevice::kCounters, "the device has more multiprocessors than expected");
    w.counters = device.counters();
  }
  return memory;
}

// log2 of the blocks in a cluster, if each tile there can be may have a cluster of its own and that
// pays for sequences as long as they can be: a grid in clusters is slower at what it does
// otherwise.
int cluster_for(const Decode& a, const DecodeKernel& kernel, const OnDevice& device,
                int64_t most_keys) {
  constexpr int64_t kLongest = 1 << 20;  // no cluster pays for so many
  if (!kernel.joins_in_cluster || a.fixed_pieces) return 0;
  const int64_t tiles = int64_t{a.sequences} * a.kv_heads;
  const int64_t longest = (std::min(most_keys, kLongest) + kernel.unit_keys - 1) / kernel.unit_keys;
  for (int log = kMostCluster; log >= kLeastCluster; --log) {
    if (tiles << log > device.multiprocessors() * kernel.blocks_per_multiprocessor) continue;
    const int blocks = clusters_at_once(device, kernel, 1 << log) << log;
    if (clusters_pay(tiles * longest, tiles, static_cast<int>(longest), blocks, log)) return log;
  }
  return 0;
}

// Queues a call whose sequences bring at most `rows` rows for each key head.
void run(Decode a, const DecodeKernel& kernel, const OnDevice& device, int64_t tokens, int64_t rows,
         int64_t dim, int64_t most_keys) {
  int grid = device.multiprocessors() * kernel.blocks_per_multiprocessor;
  a.cluster = cluster_for(a, kernel, device, most_keys);
  if (a.cluster > 0) {
    grid = clusters_at_once(device, kernel, 1 << a.cluster) << a.cluster;
  }
  const int tile_rows = kernel.row_tiles * kTileRows;
  a.slot_rows = static_cast<int>(std::min<int64_t>(rows, tile_rows));
  const Tensor workspace = lay_out(&a, device, grid, tokens, dim, tile_rows);
  void* arguments[] = {&a};
  launch_in_clusters(device, kernel, grid, 1 << a.cluster, arguments);
}

}  // namespace

void attend(const AttentionCall& call) {
  const int64_t tokens = call.q.size(0), dim = call.q.size(2);
  if (tokens == 0 || call.cu_queries.size(0) == 1) return;
  const int64_t group = call.q.size(1) / call.k.size(call.k.dim() - 2);
  const int64_t rows = std::max<int64_t>(1, call.most_queries) * group;
  const DecodeKernel* kernel = call.v.size(call.v.dim() - 1) == dim
                                   ? find_decode(call.q.dtype(), call.k.dtype(), dim, rows)
                                   : nullptr;
  if ((rows > kDecodeRows || kernel == nullptr) && prefill_serves(call)) {
    return attend_prefill(call);
  }
  require(kernel != nullptr, "these dtypes or head dimensions are not compiled");
  run(describe(call), *kernel, OnDevice(call.q), tokens, rows, dim, call.most_keys);
}

}  // namespace mainboard::cuda
