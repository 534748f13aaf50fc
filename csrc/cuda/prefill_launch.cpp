#include "csrc/cuda/prefill_launch.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "csrc/common/arguments.h"
#include "csrc/cuda/prefill_table.h"
#include "csrc/cuda/runtime.h"
#include "csrc/cuda/tensor_map.h"

namespace mainboard::cuda {
namespace {

PrefillTable all_kernels() {
  PrefillTable table;
#define MAINBOARD_PREFILL(name) add_prefill_##name(&table);
#include "prefill_list.inc"
#undef MAINBOARD_PREFILL
  return table;
}

int64_t value_dim(const AttentionCall& call) { return call.v.size(call.v.dim() - 1); }

const PrefillKernel* find(const AttentionCall& call) {
  // The others take the largest score before they scale, which must not turn it round.
  const bool transforms = call.softcap > 0.0 || call.slopes || !(call.scale > 0.0);
  return find_prefill(call.q.dtype(), call.k.dtype(), call.q.size(2), value_dim(call), transforms);
}

// Chooses what is done to scores, and prepares it.
//
// For |x| up to kReach, the polynomial is within 2.2e-6 of tanh(x) and within 5.4e-6 of it relative
// to it: its factors have the least maximum of the error over 2e-7 + 1e-5 |x| (found by Lawson's
// algorithm). They are brought from x to a score.
void choose_scores(const AttentionCall& call, Prefill* a) {
  constexpr double kReach = 0.65, kLog2E = 1.4426950408889634;
  constexpr double kTanh[] = {0.9999946721767226, -0.33301145033331386, 0.12958829256529095,
                              -0.038992225666214984};
  a->softcap = static_cast<float>(call.softcap);
  a->scores = call.slopes ? Scores::sloped : Scores::scaled;
  if (call.softcap > 0.0) {
    const double unit = call.scale / call.softcap;
    a->cap_reach = static_cast<float>(kReach / unit * (kReach / unit));
    for (int i = 0; i < 4; ++i) {
      a->cap[i] = static_cast<float>(kTanh[i] * call.softcap * kLog2E * std::pow(unit, 2 * i + 1));
    }
    const bool precise = std::isnormal(a->cap[3]) && std::isfinite(a->cap_reach);
    a->scores = call.slopes || !precise ? Scores::other : Scores::capped;
  }
  if (!(call.scale > 0.0)) a->scores = Scores::other;
}

// How many heads of one key head lie side by side in a tile: all, or one.
int packed_heads(const PrefillKernel& kernel, int group) {
  return kernel.rows % group == 0 && group <= 32 ? group : 1;
}

Prefill describe(const AttentionCall& call, const PrefillKernel& kernel) {
  Prefill a = {};
  a.heads = static_cast<int>(call.q.size(1));
  a.group = a.heads / static_cast<int>(call.k.size(call.k.dim() - 2));
  a.pack = packed_heads(kernel, a.group);
  a.pack_multiplier = (1 << 16) / a.pack + 1;
  a.page_keys = call.table ? static_cast<int>(call.k.size(1)) : 1;
  a.box_keys = call.table ? std::gcd(a.page_keys, kernel.grain) : kernel.block_keys;
  a.q = map_queries(call.q, a.pack, kernel.rows / a.pack);
  a.k = map_keys(call.k, a.box_keys, kernel.fp8 ? kernel.head_dim : kBoxColumns);
  a.v = map_keys(call.v, a.box_keys, kernel.fp8 ? kernel.value_dim : kBoxColumns);
  a.out = call.out.data<void>();
  a.out_token = call.out.stride(0);
  a.out_head = call.out.stride(1);
  if (call.lse) {
    a.lse = call.lse->data<float>();
    a.lse_head = call.lse->stride(0);
  }
  if (call.table) {
    a.table = call.table->data<const int>();
    a.table_row = call.table->stride(0);
  }
  a.cu_queries = call.cu_queries.data<const int>();
  a.cu_keys = call.cu_keys ? call.cu_keys->data<const int>() : nullptr;
  a.used_keys = call.used_keys ? call.used_keys->data<const int>() : nullptr;
  a.sequences = static_cast<int>(call.cu_queries.size(0) - 1);
  a.value_dim = static_cast<int>(value_dim(call));
  a.scale = static_cast<float>(call.scale);
  a.bf16 = call.q.dtype() == DType::bf16;
  a.cache_e5m2 = call.k.dtype() == DType::e5m2;
  a.k_scale = call.k_scale ? call.k_scale->data<const float>() : nullptr;
  a.v_scale = call.v_scale ? call.v_scale->data<const float>() : nullptr;
  a.k_scale_stride = call.k_scale && call.k_scale->numel() > 1;
  a.v_scale_stride = call.v_scale && call.v_scale->numel() > 1;
  a.left = side(call.left);
  a.right = side(call.right);
  a.causal_flags = call.causal_flags ? call.causal_flags->data<const bool>() : nullptr;
  choose_scores(call, &a);
  a.alibi_slopes = call.slopes ? call.slopes->data<const float>() : nullptr;
  a.sinks = call.sinks ? call.sinks->data<const float>() : nullptr;
  return a;
}

}  // namespace

const PrefillKernel* find_prefill(DType query, DType cache, int64_t head_dim, int64_t value_dim,
                                  bool transforms) {
  static const PrefillTable table = all_kernels();
  const bool fp8 = is_fp8(cache);
  const DType type = fp8 ? DType::f16 : query;
  for (const PrefillKernel& kernel : table) {  // the smallest first
    if (kernel.type == type && kernel.fp8 == fp8 && (fp8 || kernel.transforms == transforms) &&
        kernel.head_dim >= head_dim && kernel.value_dim >= value_dim) {
      return &kernel;
    }
  }
  return nullptr;
}

bool prefill_serves(const AttentionCall& call) {
  return find(call) != nullptr && can_map(call.q) && can_map(call.k) && can_map(call.v) &&
         can_map(call.out);
}

void attend_prefill(const AttentionCall& call, int skip_rows) {
  const int64_t tokens = call.q.size(0);
  if (tokens == 0 || call.cu_queries.size(0) == 1) return;
  const OnDevice device(call.q);
  const PrefillKernel& kernel = *find(call);
  Prefill a = describe(call, kernel);
  a.skip_rows = skip_rows;
  a.counters = device.counters();
  // No more tiles than these: each sequence's last tile may be partly full.
  const int64_t tiles = (tokens * a.pack / kernel.rows + a.sequences) * (a.heads / a.pack);
  const int grid = static_cast<int>(std::min<int64_t>(tiles, device.multiprocessors()));
  void* arguments[] = {&a};
  device.launch(grid, kernel.threads, kernel.shared_bytes, kernel.function, arguments);
}

}  // namespace mainboard::cuda
