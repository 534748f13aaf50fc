// From a call's tensors to a launch of the decode kernel.
#include "csrc/cuda/attention.h"

#include <algorithm>

#include "csrc/common/arguments.h"
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
  const int64_t tiles =
      a.sequences + (a.rows_up_to <= rows ? 0 : tokens * a.group.value / rows);
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

// Queues a call whose sequences bring at most `rows` rows for each key head.
void run(Decode a, const DecodeKernel& kernel, const OnDevice& device, int64_t tokens, int64_t rows,
         int64_t dim) {
  const int grid = device.multiprocessors() * kernel.blocks_per_multiprocessor;
  const int tile_rows = kernel.row_tiles * kTileRows;
  a.slot_rows = static_cast<int>(std::min<int64_t>(rows, tile_rows));
  const Tensor workspace = lay_out(&a, device, grid, tokens, dim, tile_rows);
  void* arguments[] = {&a};
  device.launch(grid, kernel.threads, kernel.shared_bytes, kernel.function, arguments);
}

}  // namespace

namespace {

int64_t group_of(const AttentionCall& call) {
  return call.q.size(1) / call.k.size(call.k.dim() - 2);
}

// The decode kernel for sequences of at most `rows` rows, or null.
const DecodeKernel* decode_kernel(const AttentionCall& call, int64_t rows) {
  const int64_t dim = call.q.size(2);
  return call.v.size(call.v.dim() - 1) == dim
             ? find_decode(call.q.dtype(), call.k.dtype(), dim, rows)
             : nullptr;
}

// Whether the decode kernels can read and write the call's rows.
bool decode_serves(const AttentionCall& call) {
  const bool dense_fp8 = !call.table && size_of(call.k.dtype()) == 1;
  return !dense_fp8 && is_multiple(call.q, 4) && is_multiple(call.out, 8) &&
         is_multiple(call.k, 16) && is_multiple(call.v, 16);
}

// Queues the sequences that have more than `above` and at most `rows` rows.
void attend_decode(const AttentionCall& call, int64_t above, int64_t rows) {
  Decode a = describe(call);
  a.rows_above = static_cast<int>(above);
  a.rows_up_to = static_cast<int>(std::min<int64_t>(rows, INT32_MAX));
  run(a, *decode_kernel(call, rows), OnDevice(call.q), call.q.size(0), rows, call.q.size(2));
}

// The same for every sequence with at most `rows` rows, each by the kernel that it has alone.
void attend_decode_alike(const AttentionCall& call, int64_t rows) {
  int64_t above = 0;
  for (int64_t up_to = kTileRows; above < rows; up_to *= 2) {
    const bool last = up_to >= std::min<int64_t>(rows, kDecodeRows);
    attend_decode(call, above, last ? rows : up_to);
    if (last) return;
    above = up_to;
  }
}

// Whether a batch with long sequences is likely to have short ones too, by what the host knows: how
// many queries there are on average beside the longest sequence's.
bool is_mixed(const AttentionCall& call, int64_t group) {
  const int64_t others = call.cu_queries.size(0) - 2;
  const int64_t tokens = std::max<int64_t>(0, call.q.size(0) - call.most_queries);
  return others > 0 && tokens * group < 4 * kDecodeRows * others;
}

}  // namespace

void attend(const AttentionCall& call) {
  if (call.q.size(0) == 0 || call.cu_queries.size(0) == 1) return;
  const int64_t group = group_of(call);
  const int64_t rows = std::max<int64_t>(1, call.most_queries) * group;
  const bool decode = decode_kernel(call, rows) != nullptr && decode_serves(call);
  if ((rows > kDecodeRows || !decode) && prefill_serves(call)) {
    // Short sequences have a kernel of their own, which each kernel leaves to the other on the
    // device. Without it they would not have the bits that they have alone.
    const bool split = decode && (call.deterministic || is_mixed(call, group));
    if (split && call.deterministic) attend_decode_alike(call, kDecodeRows);
    if (split && !call.deterministic) attend_decode(call, 0, kDecodeRows);
    return attend_prefill(call, split ? kDecodeRows : 0);
  }
  require(decode_kernel(call, rows) != nullptr, "these dtypes or head dimensions are not compiled");
  if (call.deterministic) return attend_decode_alike(call, rows);
  attend_decode(call, 0, rows);
}

void attend_latent(const LatentCall& call) {
  const int64_t tokens = call.q.size(0), dim = call.out.size(2);
  if (tokens == 0 || call.cu_queries.size(0) == 1) return;
  const DecodeKernel* kernel = find_latent(call.q.dtype());
  require(kernel != nullptr && call.cache.dtype() == call.q.dtype() &&
              call.q.size(2) == kernel->head_dim && dim == 512,
          "this dtype or these dimensions are not compiled");
  require(is_multiple(call.q, 16) && is_multiple(call.cache, 16) && is_multiple(call.out, 8),
          "q's, kv_cache's or out's rows are not aligned");
  Decode a = {};
  describe_queries(call.q, call.out, call.lse, call.cu_queries, &a);
  const int64_t size = size_of(call.cache.dtype()), token = call.cache.stride(1) * size;
  require(token < INT32_MAX, "kv_cache has too long a stride");
  a.k = {call.cache.data<const char>(), call.cache.stride(0) * size, 0, static_cast<int>(token)};
  a.table = call.table.data<const int>();
  a.table_row = call.table.stride(0);
  a.page_blocks = Divisor(static_cast<uint32_t>(call.cache.size(1) / kBlockKeys));
  a.used_keys = call.used_keys.data<const int>();
  a.kv_heads = 1;
  a.group = Divisor(static_cast<uint32_t>(a.heads));
  a.scale_log2 = static_cast<float>(call.scale * kLog2E);
  a.left = kUnbounded;
  a.right = call.causal ? 0 : kUnbounded;
  a.k_scale = a.v_scale = pointer<float>(call.kv_scale);
  a.fixed_pieces = call.deterministic;
  const int64_t rows = std::max<int64_t>(1, call.most_queries) * a.heads;
  run(a, *kernel, OnDevice(call.q), tokens, rows, dim);
}

}  // namespace mainboard::cuda
