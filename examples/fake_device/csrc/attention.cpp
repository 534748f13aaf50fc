#include "attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "backend.h"

namespace fake {
namespace {

using at::Tensor;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Calls `work` with a null pointer of the element type that `dtype` names.
template <typename Work>
void with_type(at::ScalarType dtype, Work work) {
  switch (dtype) {
    case at::kFloat:
      return work(static_cast<float*>(nullptr));
    case at::kHalf:
      return work(static_cast<at::Half*>(nullptr));
    case at::kBFloat16:
      return work(static_cast<at::BFloat16*>(nullptr));
    case at::kFloat8_e4m3fn:
      return work(static_cast<at::Float8_e4m3fn*>(nullptr));
    case at::kFloat8_e5m2:
      return work(static_cast<at::Float8_e5m2*>(nullptr));
    default:
      TORCH_CHECK(false, "the fake device's kernels do not know ", dtype);
  }
}

// A row of elements, its last dimension contiguous, as doubles times a scale.
void read_row(const Tensor& row, double scale, double* into) {
  with_type(row.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* from = static_cast<const T*>(row.const_data_ptr());
    for (int64_t i = 0; i < row.numel(); ++i) into[i] = static_cast<float>(from[i]) * scale;
  });
}

void write_row(const Tensor& row, const double* from) {
  with_type(row.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    T* into = static_cast<T*>(row.mutable_data_ptr());
    for (int64_t i = 0; i < row.numel(); ++i) into[i] = static_cast<T>(static_cast<float>(from[i]));
  });
}

std::optional<Tensor> seen(const Optional& tensor) {
  if (!tensor.has_value()) return std::nullopt;
  return seen_by_device(*tensor);
}

double element(const Tensor& x, int64_t i) {
  return x.scalar_type() == at::kFloat
             ? x.const_data_ptr<float>()[i * x.stride(0)]
             : static_cast<double>(x.const_data_ptr<int>()[i * x.stride(0)]);
}

double scale_of(const Optional& scale, int64_t head) {
  return scale.has_value() ? element(*scale, scale->size(0) == 1 ? 0 : head) : 1.0;
}

struct Call {
  Tensor q, k, v, out;
  Optional lse;
  Tensor cu_seqlens_q;
  Optional cu_seqlens_k, seqused_k, block_table;
  double scale;
  bool causal;
  int64_t left, right;
  double softcap;
  Optional alibi_slopes, sinks, k_scale, v_scale, causal_flags;
};

struct Sequence {
  int64_t first_query, queries, first_key, keys;
  bool causal;
};

Sequence sequence(const Call& call, int64_t index) {
  const auto at = [&](const Tensor& x, int64_t i) { return static_cast<int64_t>(element(x, i)); };
  Sequence found{at(call.cu_seqlens_q, index), 0, 0, 0, call.causal};
  if (call.causal_flags) found.causal |= call.causal_flags->const_data_ptr<bool>()[index];
  found.queries = at(call.cu_seqlens_q, index + 1) - found.first_query;
  if (call.cu_seqlens_k) {
    found.first_key = at(*call.cu_seqlens_k, index);
    found.keys = at(*call.cu_seqlens_k, index + 1) - found.first_key;
  }
  if (call.seqused_k) found.keys = at(*call.seqused_k, index);
  return found;
}

// The keys, or the values, of one sequence and key head as doubles, one row after the other.
std::vector<double> gather(const Call& call, const Tensor& cache, const Sequence& where,
                           int64_t index, int64_t head, double scale) {
  const int64_t dim = cache.size(-1);
  std::vector<double> rows(static_cast<size_t>(where.keys * dim));
  for (int64_t j = 0; j < where.keys; ++j) {
    Tensor row;
    if (call.block_table) {
      const int64_t page_size = cache.size(1);
      const Tensor table = call.block_table->select(0, index);
      const auto page = static_cast<int64_t>(element(table, j / page_size));
      row = cache.select(0, page).select(0, j % page_size).select(0, head);
    } else {
      row = cache.select(0, where.first_key + j).select(0, head);
    }
    read_row(row, scale, rows.data() + j * dim);
  }
  return rows;
}

bool visible(const Call& call, const Sequence& where, int64_t position, int64_t key) {
  if (call.left >= 0 && key < position - call.left) return false;
  if (where.causal) return key <= position;
  return call.right < 0 || key <= position + call.right;
}

// One query of one head: weights of the visible keys, then the weighted sum of their values.
void attend(const Call& call, const Sequence& where, int64_t head, int64_t query,
            const std::vector<double>& keys, const std::vector<double>& values) {
  const int64_t dim = call.q.size(-1), value_dim = call.v.size(-1);
  const int64_t position = query + where.keys - where.queries, token = where.first_query + query;
  const double slope = call.alibi_slopes ? element(*call.alibi_slopes, head) : 0.0;
  std::vector<double> q(static_cast<size_t>(dim)), scores(static_cast<size_t>(where.keys));
  read_row(call.q.select(0, token).select(0, head), call.scale, q.data());
  double most = call.sinks ? element(*call.sinks, head) : -kInfinity;
  for (int64_t j = 0; j < where.keys; ++j) {
    double s = -kInfinity;
    if (visible(call, where, position, j)) {
      s = 0.0;
      for (int64_t i = 0; i < dim; ++i) s += q[i] * keys[j * dim + i];
      if (call.softcap > 0) s = call.softcap * std::tanh(s / call.softcap);
      s -= slope * static_cast<double>(std::abs(position - j));
    }
    scores[j] = s;
    most = std::max(most, s);
  }
  std::vector<double> sum(static_cast<size_t>(value_dim), 0.0);
  double total =
      call.sinks && most > -kInfinity ? std::exp(element(*call.sinks, head) - most) : 0.0;
  for (int64_t j = 0; j < where.keys; ++j) {
    if (scores[j] == -kInfinity) continue;  // what is hidden may be NaN
    const double weight = std::exp(scores[j] - most);
    total += weight;
    for (int64_t i = 0; i < value_dim; ++i) sum[i] += weight * values[j * value_dim + i];
  }
  if (total > 0) {
    for (double& x : sum) x /= total;
  }
  write_row(call.out.select(0, token).select(0, head), sum.data());
  if (call.lse) {
    const double log_sum = total > 0 ? most + std::log(total) : -kInfinity;
    call.lse->select(0, head).mutable_data_ptr<float>()[token] = static_cast<float>(log_sum);
  }
}

void run(const Call& call) {
  const int64_t group = call.q.size(1) / call.k.size(-2);
  for (int64_t index = 0; index + 1 < call.cu_seqlens_q.size(0); ++index) {
    const Sequence where = sequence(call, index);
    if (where.queries == 0) continue;
    for (int64_t kv_head = 0; kv_head < call.k.size(-2); ++kv_head) {
      const auto keys =
          gather(call, call.k, where, index, kv_head, scale_of(call.k_scale, kv_head));
      const auto values =
          gather(call, call.v, where, index, kv_head, scale_of(call.v_scale, kv_head));
      for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        for (int64_t query = 0; query < where.queries; ++query) {
          attend(call, where, head, query, keys, values);
        }
      }
    }
  }
}

double largest(at::ScalarType dtype) {
  return dtype == at::kFloat8_e4m3fn ? 448.0 : dtype == at::kFloat8_e5m2 ? 57344.0 : kInfinity;
}

// Writes every token's row into its slot, as it is or as an 8-bit float over a scale.
void store(const Tensor& rows, const Tensor& cache, const Tensor& slots, const Optional& scale) {
  const int64_t page_size = cache.size(1);
  const double limit = largest(cache.scalar_type());
  std::vector<double> row(static_cast<size_t>(cache.size(-1)));
  for (int64_t token = 0; token < slots.size(0); ++token) {
    const int64_t slot = slots.const_data_ptr<int64_t>()[token];
    if (slot < 0) continue;
    for (int64_t head = 0; head < rows.size(1); ++head) {
      read_row(rows.select(0, token).select(0, head), 1.0, row.data());
      if (limit < kInfinity) {
        const float over = 1.0f / static_cast<float>(scale_of(scale, head));
        for (double& x : row) {
          const float scaled = static_cast<float>(x) * over;
          // NaN passes.
          x = scaled > limit ? limit : scaled < -limit ? -limit : scaled;
        }
      }
      const Tensor page = cache.select(0, slot / page_size);
      write_row(page.select(0, slot % page_size).select(0, head), row.data());
    }
  }
}

void merge(const Tensor& out, const Optional& out_lse, const Tensor& a, const Tensor& a_lse,
           const Tensor& b, const Tensor& b_lse) {
  const int64_t dim = a.size(-1);
  std::vector<double> x(static_cast<size_t>(dim)), y(x), sum(x);
  for (int64_t head = 0; head < a.size(1); ++head) {
    for (int64_t token = 0; token < a.size(0); ++token) {
      const double s = element(a_lse.select(0, head), token);
      const double t = element(b_lse.select(0, head), token);
      const double most = std::max(s, t);
      const double total =
          most == -kInfinity ? most : most + std::log(std::exp(s - most) + std::exp(t - most));
      read_row(a.select(0, token).select(0, head), 1.0, x.data());
      read_row(b.select(0, token).select(0, head), 1.0, y.data());
      // A part that saw nothing may hold anything; it is not read.
      const double of_a = s == -kInfinity ? 0.0 : std::exp(s - total);
      const double of_b = t == -kInfinity ? 0.0 : std::exp(t - total);
      for (int64_t i = 0; i < dim; ++i) {
        sum[i] = (of_a > 0 ? of_a * x[i] : 0.0) + (of_b > 0 ? of_b * y[i] : 0.0);
      }
      write_row(out.select(0, token).select(0, head), sum.data());
      if (out_lse) {
        const Tensor row = out_lse->select(0, head);
        row.mutable_data_ptr<float>()[token * row.stride(0)] = static_cast<float>(total);
      }
    }
  }
}

}  // namespace

void attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
               const Optional& lse, const Tensor& cu_seqlens_q, const Optional& cu_seqlens_k,
               const Optional& seqused_k, const Optional& block_table, double scale, bool causal,
               int64_t window_left, int64_t window_right, double softcap,
               const Optional& alibi_slopes, const Optional& sinks, const Optional& k_scale,
               const Optional& v_scale, const Optional& causal_flags) {
  const Call call{seen_by_device(q),
                  seen_by_device(k),
                  seen_by_device(v),
                  seen_by_device(out),
                  seen(lse),
                  seen_by_device(cu_seqlens_q),
                  seen(cu_seqlens_k),
                  seen(seqused_k),
                  seen(block_table),
                  scale,
                  causal,
                  window_left,
                  window_right,
                  softcap,
                  seen(alibi_slopes),
                  seen(sinks),
                  seen(k_scale),
                  seen(v_scale),
                  seen(causal_flags)};
  queue_for(q).submit([call] { run(call); });
}

void reshape_and_cache(const Tensor& key, const Tensor& value, const Tensor& key_cache,
                       const Tensor& value_cache, const Tensor& slots, const Optional& k_scale,
                       const Optional& v_scale) {
  const Tensor keys = seen_by_device(key), key_pages = seen_by_device(key_cache);
  const Tensor values = seen_by_device(value), value_pages = seen_by_device(value_cache);
  const Tensor where = seen_by_device(slots);
  queue_for(key).submit([=, of_keys = seen(k_scale), of_values = seen(v_scale)] {
    store(keys, key_pages, where, of_keys);
    store(values, value_pages, where, of_values);
  });
}

void merge_attention_states(const Tensor& out, const Optional& out_lse, const Tensor& a,
                            const Tensor& a_lse, const Tensor& b, const Tensor& b_lse) {
  queue_for(a).submit(
      [result = seen_by_device(out), total = seen(out_lse), x = seen_by_device(a),
       x_lse = seen_by_device(a_lse), y = seen_by_device(b),
       y_lse = seen_by_device(b_lse)] { merge(result, total, x, x_lse, y, y_lse); });
}

}  // namespace fake
