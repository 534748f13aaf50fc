// From a call's tensors to a launch of the latent decode kernel.
#include <algorithm>
#include <numeric>
#include <optional>

#include "csrc/common/arguments.h"
#include "csrc/cuda/attention.h"
#include "csrc/cuda/clusters.h"
#include "csrc/cuda/latent.h"
#include "csrc/cuda/runtime.h"
#include "csrc/cuda/tensor_map.h"
#include "csrc/cuda/workspace.h"

namespace mainboard::cuda {
namespace {

constexpr double kLog2E = 1.4426950408889634;
constexpr int kKeyDim = 576, kValueDim = 512;

// How many of a sequence's tiles are worked on together: as many as leave few blocks idle.
int abreast_for(int64_t tiles) {
  int best = 1;
  for (int n = 2; n <= 4; ++n) {
    const auto idle = [&](int width) { return (width - tiles % width) % width; };
    if (n <= tiles && idle(n) <= idle(best)) best = n;
  }
  return best;
}

// Queries whose rows, of all heads of all tokens, follow one another at one distance and begin at
// multiples of 16 bytes, as the copy engine needs them: the caller's, or else a copy.
class Queries {
 public:
  Queries(const Tensor& q, const OnDevice& device)
      : data_(q.data<void>()), token_(q.stride(0)), head_(q.stride(1)) {
    const int64_t tokens = q.size(0), heads = q.size(1);
    if (heads == 1) head_ = token_;
    if (tokens == 1) token_ = heads * head_;
    if (!can_map(q) || token_ != heads * head_) copy(q, device);
  }

  void describe(const Tensor& q, LatentDecode* a) const {
    a->q = data_;
    a->q_token = token_;
    a->q_head = head_;
    a->queries = map_rows(data_, q.dtype(), q.size(0) * q.size(1), kKeyDim, head_, kLatentRows);
  }

 private:
  void copy(const Tensor& q, const OnDevice& device) {
    const int64_t size = size_of(q.dtype()), tokens = q.size(0), heads = q.size(1);
    const int64_t row = kKeyDim * size;
    copy_ = device.allocate(tokens * heads * row / static_cast<int64_t>(sizeof(float)));
    char* to = reinterpret_cast<char*>(copy_->data<float>());
    for (int64_t head = 0; head < heads; ++head) {
      const char* from = q.data<const char>() + head * q.stride(1) * size;
      check_cuda(cudaMemcpy2DAsync(to + head * row, heads * row, from, q.stride(0) * size, row,
                                   tokens, cudaMemcpyDeviceToDevice, device.stream()),
                 "cudaMemcpy2DAsync");
    }
    data_ = to;
    head_ = kKeyDim;
    token_ = heads * head_;
  }

  const void* data_;
  int64_t token_, head_;  // strides
  std::optional<Tensor> copy_;
};

LatentDecode describe(const LatentCall& call) {
  LatentDecode a = {};
  const int box = std::gcd(static_cast<int>(call.cache.size(1)), kLatentPartKeys);
  while (1 << a.log_box < box) ++a.log_box;
  a.cache = map_latent(call.cache, box);
  a.out = call.out.data<void>();
  a.out_token = call.out.stride(0);
  a.out_head = call.out.stride(1);
  if (call.lse) {
    a.lse = call.lse->data<float>();
    a.lse_head = call.lse->stride(0);
  }
  a.table = call.table.data<const int>();
  a.table_row = call.table.stride(0);
  a.page_blocks = Divisor(static_cast<uint32_t>(call.cache.size(1) / kBlockKeys));
  a.cu_queries = call.cu_queries.data<const int>();
  a.used_keys = call.used_keys.data<const int>();
  a.sequences = static_cast<int>(call.cu_queries.size(0) - 1);
  a.heads = Divisor(static_cast<uint32_t>(call.q.size(1)));
  a.scale_log2 = static_cast<float>(call.scale * kLog2E);
  a.right = call.causal ? 0 : kUnbounded;
  a.kv_scale = call.kv_scale ? call.kv_scale->data<const float>() : nullptr;
  a.fixed_pieces = call.deterministic;
  return a;
}

// More pieces than there can be, where they are fixed: each sequence's last tiles may be partly
// full, or none.
int64_t most_fixed_pieces(const LatentDecode& a, int64_t tokens) {
  if (!a.fixed_pieces) return 0;
  return (tokens * a.heads.value / kLatentRows + a.sequences * a.abreast) * kMostPieces;
}

// The kernel as launches in clusters want it.
DecodeKernel launched(const LatentKernel& kernel) {
  DecodeKernel all = {};
  all.function = kernel.function;
  all.shared_bytes = kernel.shared_bytes;
  all.threads = kernel.threads;
  return all;
}

// log2 of the blocks among which each of `tiles` tiles is shared: as many as keep the device busy.
int cluster_for(DType type, const OnDevice& device, int64_t tiles) {
  const DecodeKernel kernel = launched(*find_latent(type, LatentMode::sharing));
  for (int log = kMostLatentCluster; log > 0; --log) {
    if (tiles << log > device.multiprocessors()) continue;
    if (tiles <= clusters_at_once(device, kernel, {1 << log})) return log;
  }
  return 0;
}

}  // namespace

void attend_latent(const LatentCall& call) {
  const int64_t tokens = call.q.size(0);
  if (tokens == 0 || call.cu_queries.size(0) == 1) return;
  require(find_latent(call.q.dtype(), LatentMode::alone) != nullptr &&
              call.cache.dtype() == call.q.dtype() && call.q.size(2) == kKeyDim &&
              call.out.size(2) == kValueDim,
          "this dtype or these dimensions are not compiled");
  require(can_map(call.cache) && can_map(call.out),
          "kv_cache's or out's rows do not begin at multiples of 16 bytes");
  const OnDevice device(call.q);
  const Queries queries(call.q, device);
  LatentDecode a = describe(call);
  queries.describe(call.q, &a);
  const int64_t rows = std::max<int64_t>(1, call.most_queries) * a.heads.value;
  const int64_t tiles = (rows + kLatentRows - 1) / kLatentRows;
  a.slot_rows = static_cast<int>(std::min<int64_t>((rows + 15) / 16 * 16, kLatentRows));
  const int abreast = abreast_for(tiles);
  const int cluster = a.fixed_pieces ? 0 : cluster_for(call.q.dtype(), device, a.sequences * tiles);
  a.pairs = cluster == 0 && abreast % 2 == 0;
  const LatentMode mode = cluster > 0 ? LatentMode::sharing
                          : a.pairs   ? LatentMode::paired
                                      : LatentMode::alone;
  const DecodeKernel kernel = launched(*find_latent(call.q.dtype(), mode));
  const int blocks = a.pairs ? 2 : 1 << cluster;  // of a cluster of the launch
  const int most =
      blocks > 1 ? clusters_at_once(device, kernel, {blocks}) * blocks : device.multiprocessors();
  const int grid = walk_together(abreast, cluster, most, &a);
  const Tensor workspace = allocate_workspace(device, grid, most_fixed_pieces(a, tokens),
                                              a.slot_rows, kValueDim, &a.workspace);
  void* arguments[] = {&a};
  launch_in_clusters(device, kernel, grid, {blocks}, arguments);
}

}  // namespace mainboard::cuda
