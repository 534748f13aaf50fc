// The CPU implementations of the operators that only move or join rows.
#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/common/arguments.h"
#include "csrc/cpu/cache_kernels.h"
#include "csrc/cpu/operators.h"
#include "csrc/cpu/views.h"

namespace mainboard::cpu {
namespace {

constexpr int64_t kCopyGrain = 16;  // tokens that are moved together

void check_slots(const int64_t* slot, int64_t tokens, int64_t room) {
  for (int64_t t = 0; t < tokens; ++t) {
    if (slot[t] >= -1 && slot[t] < room) continue;
    throw std::invalid_argument("slot_mapping[" + std::to_string(t) + "] is " +
                                std::to_string(slot[t]) + "; expected -1 to skip, or 0 to " +
                                std::to_string(room - 1));
  }
}

// One input on its way into a cache.
struct Writer {
  Rows from, to;
  int64_t heads, dim;
  std::vector<float> factors;  // one for each head, one for all, or none

  Writer(const Rows& source, const Rows& cache, int64_t head_count, int64_t size,
         const std::optional<Tensor>& scale)
      : from(source), to(cache), heads(head_count), dim(size) {
    if (!scale) return;
    for (int64_t i = 0; i < scale->numel(); ++i) {
      factors.push_back(1.0f / scale->data<const float>()[i]);
    }
  }
  int64_t bytes(int64_t tokens) const { return tokens * heads * dim * size_of(to.dtype); }
  void write(const CacheKernels& kernels, int64_t token, int64_t page, int64_t slot,
             bool streamed) const {
    kernels.copy({from.at(token, 0, 0), from.dtype, from.outer, from.head},
                 {to.at(page, slot, 0), to.dtype, to.inner, to.head}, heads, dim,
                 factors.empty() ? nullptr : factors.data(), factors.size() > 1 ? 1 : 0, streamed);
  }
};

void write_all(const Writer& first, const Writer& second, const Tensor& slots, int64_t pages,
               int64_t page_size) {
  const CacheKernels& kernels = *active_kernels().cache;
  const int64_t* slot = slots.data<const int64_t>();
  const int64_t tokens = slots.size(0);
  check_slots(slot, tokens, pages * page_size);
  const bool streamed = first.bytes(tokens) + second.bytes(tokens) >= kStreamedBytes;
  parallel_for((tokens + kCopyGrain - 1) / kCopyGrain, 1, [&](int64_t part) {
    const int64_t begin = part * kCopyGrain;
    const int64_t end = begin + kCopyGrain < tokens ? begin + kCopyGrain : tokens;
    for (int64_t t = begin; t < end; ++t) {
      if (slot[t] < 0) continue;
      first.write(kernels, t, slot[t] / page_size, slot[t] % page_size, streamed);
      second.write(kernels, t, slot[t] / page_size, slot[t] % page_size, streamed);
    }
    if (streamed) kernels.settle();
  });
}

}  // namespace

void reshape_and_cache(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  const Tensor key = in.tensor(), value = in.tensor();
  const Tensor key_cache = in.tensor(), value_cache = in.tensor(), slots = in.tensor();
  const auto k_scale = in.optional_tensor(), v_scale = in.optional_tensor();
  check_reshape_and_cache(key, value, key_cache, value_cache, slots, k_scale, v_scale, true);
  const int64_t heads = key.size(1);
  const Writer keys(token_rows(key), page_rows(key_cache), heads, key.size(2), k_scale);
  const Writer values(token_rows(value), page_rows(value_cache), heads, value.size(2), v_scale);
  write_all(keys, values, slots, key_cache.size(0), key_cache.size(1));
}

void concat_and_cache_mla(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  const Tensor latent = in.tensor(), rotary = in.tensor(), cache = in.tensor();
  const Tensor slots = in.tensor();
  const auto scale = in.optional_tensor();
  check_concat_and_cache_mla(latent, rotary, cache, slots, scale, true);
  auto rows = [](const Tensor& t) { return Rows{t.data<char>(), t.dtype(), t.stride(0), 0, 0}; };
  const Rows front = latent_rows(cache);
  Rows back = front;
  back.data += latent.size(1) * size_of(back.dtype);
  const Writer first(rows(latent), front, 1, latent.size(1), scale);
  const Writer second(rows(rotary), back, 1, rotary.size(1), scale);
  write_all(first, second, slots, cache.size(0), cache.size(1));
}

void merge_attention_states(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  const Tensor out = in.tensor();
  const auto out_lse = in.optional_tensor();
  const Tensor a = in.tensor(), a_lse = in.tensor(), b = in.tensor(), b_lse = in.tensor();
  check_merge(out, out_lse, a, a_lse, b, b_lse);
  const CacheKernels& kernels = *active_kernels().cache;
  const Rows to = token_rows(out), from_a = token_rows(a), from_b = token_rows(b);
  auto rows_of = [](const Rows& rows, int64_t token) {
    return HeadRows{rows.at(token, 0, 0), rows.dtype, rows.outer, rows.head};
  };
  auto scores_of = [](const Tensor& lse, int64_t token) {
    return HeadScores{lse.data<float>() + token * lse.stride(1), lse.stride(1), lse.stride(0)};
  };
  const int64_t tokens = out.size(0);
  // A part that is written over has its lines in a cache already.
  const bool streamed = out.numel() * size_of(out.dtype()) >= kStreamedBytes &&
                        out.data<char>() != a.data<char>() && out.data<char>() != b.data<char>();
  parallel_for((tokens + kMergedTokens - 1) / kMergedTokens, 1, [&](int64_t block) {
    const int64_t t = block * kMergedTokens, left = tokens - t;
    kernels.merge(rows_of(from_a, t), scores_of(a_lse, t), rows_of(from_b, t), scores_of(b_lse, t),
                  rows_of(to, t), out_lse ? scores_of(*out_lse, t) : HeadScores{nullptr, 0, 0},
                  left < kMergedTokens ? left : kMergedTokens, out.size(1), out.size(2), streamed);
  });
}

}  // namespace mainboard::cpu
