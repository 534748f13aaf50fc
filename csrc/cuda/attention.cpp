// From a call's tensors to launches of the decode and prefill kernels.
#include "csrc/cuda/attention.h"

#include <algorithm>

#include "csrc/common/arguments.h"
#include "csrc/cuda/clusters.h"
#include "csrc/cuda/decode.h"
#include "csrc/cuda/prefill_launch.h"
#include "csrc/cuda/runtime.h"
#include "csrc/cuda/workspace.h"

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
  a->tokens = static_cast<int>(q.size(0));
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
  const int64_t page_keys = call.table ? call.k.size(1) : 1;
  a.pages = call.table ? static_cast<int>(std::min(call.k.size(0), call.v.size(0))) : 0;
  a.most_keys = static_cast<int>(
      std::min<int64_t>(INT32_MAX, call.table ? call.table->size(1) * page_keys : call.k.size(0)));
  a.page_blocks = Divisor(call.table ? static_cast<uint32_t>(call.k.size(1) / kBlockKeys) : 1);
  a.cu_keys = pointer<int>(call.cu_keys);
  a.used_keys = pointer<int>(call.used_keys);
  a.kv_heads = static_cast<int>(call.k.size(call.k.dim() - 2));
  a.group = Divisor(static_cast<uint32_t>(a.heads / a.kv_heads));
  a.scale_log2 = static_cast<float>(call.scale * kLog2E);
  a.left = side(call.left);
  a.right = side(call.right);
  a.causal_flags = pointer<bool>(call.causal_flags);
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

// More pieces than there can be, where they are fixed: each sequence's last tile may be partly
// full.
int64_t most_fixed_pieces(const Decode& a, int64_t tokens, int rows) {
  if (!a.fixed_pieces) return 0;
  const int64_t tiles = a.sequences + (a.rows_up_to <= rows ? 0 : tokens * a.group.value / rows);
  return tiles * a.kv_heads * kMostPieces;
}

int log2_of(int power) {
  int log = 0;
  while (1 << log < power) ++log;
  return log;
}

// More than a block of a cluster reads in the time that a join through memory takes: clusters leave
// multiprocessors idle. Larger units are those whose arithmetic takes longer.
int most_cluster_units(const DecodeKernel& kernel) { return kernel.unit_keys > 64 ? 2 : 4; }

int spread_units(const DecodeKernel& kernel, Clusters clusters) {
  return clusters.spread ? most_cluster_units(kernel) : 0;
}

// The clusters to launch a grid in, if each tile there can be may have one of its own and that pays
// for sequences as long as they can be: a grid in clusters is slower at what it does otherwise.
// Eight blocks with a multiprocessor each join faster than 16 that have to share.
Clusters clusters_for(const Decode& a, const DecodeKernel& kernel, const OnDevice& device,
                      int64_t most_keys) {
  constexpr int64_t kLongest = 1 << 20;  // no cluster pays for so many
  constexpr Clusters kKinds[] = {
      {1 << kLeastCluster, true}, {1 << kMostCluster, false}, {1 << kLeastCluster, false}};
  if (!kernel.joins_in_cluster || a.fixed_pieces) return {};
  const int64_t tiles = int64_t{a.sequences} * a.kv_heads;
  const int64_t longest = (std::min(most_keys, kLongest) + kernel.unit_keys - 1) / kernel.unit_keys;
  const int most = device.multiprocessors() * kernel.blocks_per_multiprocessor;
  for (const Clusters kind : kKinds) {
    if (tiles * kind.blocks > most) continue;
    if (longest > int64_t{kind.blocks} * most_cluster_units(kernel)) continue;
    // Few tiles would leave most multiprocessors idle.
    if (kind.spread && 3 * tiles * kind.blocks < device.multiprocessors()) continue;
    const int blocks = clusters_at_once(device, kernel, kind) * kind.blocks;
    if (blocks == 0) continue;
    const int64_t equal = (tiles * longest + blocks - 1) / blocks;
    if (clusters_pay(tiles, equal, static_cast<int>(longest), blocks, log2_of(kind.blocks),
                     spread_units(kernel, kind), a.slot_rows)) {
      return kind;
    }
  }
  return {};
}

// The kernel with a block to a multiprocessor, where there is one and tiles are cut: into half as
// many pieces as by two blocks, which pays if a piece is large. Where most tiles are whole, one
// block's ends are hidden by the other.
const DecodeKernel* kernel_alone(const Decode& a, const DecodeKernel& kernel,
                                 const OnDevice& device, int64_t rows) {
  constexpr int kLargePiece = 8;  // rows
  const int64_t tiles = int64_t{a.sequences} * a.kv_heads;
  if (a.fixed_pieces || kernel.heads > 1 || a.slot_rows < kLargePiece ||
      tiles >= device.multiprocessors()) {
    return nullptr;
  }
  return find_decode_alone(kernel.query, kernel.cache, kernel.head_dim, rows);
}

// Queues a call whose sequences bring at most `rows` rows for each key head.
void run(Decode a, DecodeKernel kernel, const OnDevice& device, int64_t tokens, int64_t rows,
         int64_t dim, int64_t most_keys) {
  const int tile_rows = kernel.row_tiles * kTileRows;
  a.slot_rows =
      static_cast<int>(std::min<int64_t>(kernel.heads * rows, tile_rows)) / kernel.joiners;
  const Clusters clusters = clusters_for(a, kernel, device, most_keys);
  if (clusters.blocks == 1) {
    const DecodeKernel* alone = kernel_alone(a, kernel, device, rows);
    if (alone != nullptr) kernel = *alone;
  }
  int grid = device.multiprocessors() * kernel.blocks_per_multiprocessor;
  if (clusters.blocks > 1) {
    const int64_t tiles = int64_t{a.sequences} * a.kv_heads;
    grid = static_cast<int>(std::min<int64_t>(tiles, clusters_at_once(device, kernel, clusters)) *
                            clusters.blocks);
    a.cluster = log2_of(clusters.blocks);
    a.spread_units = spread_units(kernel, clusters);
  }
  const Tensor workspace =
      allocate_workspace(device, grid * kernel.joiners, most_fixed_pieces(a, tokens, tile_rows),
                         a.slot_rows, dim, &a.workspace);
  void* arguments[] = {&a};
  launch_in_clusters(device, kernel, grid, clusters, arguments);
}

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

// Whether `heads` neighbouring heads of a token make one row of the cache.
bool heads_adjoin(const Tensor& cache, int heads) {
  const int64_t at = cache.dim() - 2;
  return cache.size(at) % heads == 0 && cache.stride(at) == cache.size(at + 1);
}

// The kernel that walks `heads` key heads side by side, if it can and that pays: it has fewer
// tiles, in more pieces. Batches differ in that, so it is not for calls whose bits must not.
const DecodeKernel* kernel_of_heads(const AttentionCall& call, int64_t rows, const OnDevice& device,
                                    int heads) {
  if (call.deterministic || !heads_adjoin(call.k, heads) || !heads_adjoin(call.v, heads)) {
    return nullptr;
  }
  const DecodeKernel* kernel =
      find_decode_of_heads(call.q.dtype(), call.k.dtype(), call.q.size(2), rows, heads);
  if (kernel == nullptr) return nullptr;
  const int64_t tiles = (call.cu_queries.size(0) - 1) * (call.k.size(call.k.dim() - 2) / heads);
  const int blocks = device.multiprocessors() * kernel->blocks_per_multiprocessor;
  // Rows of less than 128 bytes are read so slowly that more pieces cost little beside it.
  const int64_t pieces = call.q.size(2) * size_of(call.k.dtype()) < 128 ? 32 : 4;
  if (tiles * pieces < blocks) return nullptr;
  // A warp joins its heads' pieces alone: of few rows, and seldom.
  constexpr int kJoinedRows = 4, kKeysOfBlock = 1536;
  const bool seldom = tiles * call.most_keys >= int64_t{kKeysOfBlock} * blocks;
  return kernel->joiners == 1 || (rows <= kJoinedRows && seldom) ? kernel : nullptr;
}

// The kernel that walks as many key heads side by side as pays, or null: one at a time.
const DecodeKernel* side_by_side(const AttentionCall& call, int64_t rows, const OnDevice& device) {
  for (const int heads : {8, 2}) {
    const DecodeKernel* kernel = kernel_of_heads(call, rows, device, heads);
    if (kernel != nullptr) return kernel;
  }
  return nullptr;
}

// Whether the decode kernels can read and write the call's rows.
bool decode_serves(const AttentionCall& call) {
  const bool dense_fp8 = !call.table && size_of(call.k.dtype()) == 1;
  return !dense_fp8 && is_multiple(call.q, 4) && is_multiple(call.out, 8) &&
         is_multiple(call.k, 16) && is_multiple(call.v, 16);
}

// Queues the sequences with more than `above` and up to `up_to` rows, by the kernel for `rows`.
void attend_decode(const AttentionCall& call, int64_t rows, int above = 0, int up_to = INT32_MAX) {
  Decode a = describe(call);
  a.rows_above = above;
  a.rows_up_to = up_to;
  const OnDevice device(call.q);
  const DecodeKernel* kernel = side_by_side(call, rows, device);
  if (kernel != nullptr) {
    a.kv_heads /= kernel->heads;
    a.k.head *= kernel->heads;
    a.v.head *= kernel->heads;
  } else {
    kernel = decode_kernel(call, rows);
  }
  run(a, *kernel, device, call.q.size(0), rows, call.q.size(2), call.most_keys);
}

// The same for all sequences up to `up_to` rows, each by the kernel that it has alone.
void attend_decode_alike(const AttentionCall& call, int64_t rows, int up_to = INT32_MAX) {
  int above = 0;
  for (int tile = kTileRows; tile < rows && tile < kDecodeRows; tile *= 2) {
    attend_decode(call, tile, above, tile);
    above = tile;
  }
  attend_decode(call, rows, above, up_to);
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
    if (split && call.deterministic) attend_decode_alike(call, kDecodeRows, kDecodeRows);
    if (split && !call.deterministic) attend_decode(call, kDecodeRows, 0, kDecodeRows);
    return attend_prefill(call, split ? kDecodeRows : 0);
  }
  require(decode_kernel(call, rows) != nullptr, "these dtypes or head dimensions are not compiled");
  if (call.deterministic) return attend_decode_alike(call, rows);
  attend_decode(call, rows);
}

}  // namespace mainboard::cuda
