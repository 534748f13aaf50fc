// Drives one instruction set's kernels without torch, and compares them with float64.
//
//   cpu_driver ISA attention FILE   every case of FILE, a line each, from test_cpu_driver.py
//   cpu_driver ISA functions        exp and tanh over their ranges: prints the largest errors
//   cpu_driver ISA rows             rounds into every format of one byte
//
// Prints what ran; the exit status is 1 when something is outside its tolerance.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>

#include "csrc/cpu/schedule.h"
#include "tests/kernels/cpu_driver/formats.h"

using namespace mainboard::cpu;

namespace {

struct Case {
  std::string name;
  int64_t sequences = 0, heads = 0, kv_heads = 0, head_dim = 0, value_dim = 0, page = 0;
  int64_t left = 0, right = 0, alibi = 0, sinks = 0, scaled = 0, fixed = 0, seed = 0;
  double softcap = 0;
  DType dtype = DType::f32, stored = DType::f32;
  std::vector<int64_t> queries, keys;
  std::deque<bool> causal;  // a vector of them has no references
};

DType dtype_named(const std::string& name) {
  const char* names[] = {"float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8"};
  const DType types[] = {DType::f32, DType::f16, DType::bf16, DType::e4m3, DType::e5m2, DType::i8};
  for (int i = 0; i < 6; ++i) {
    if (name == names[i]) return types[i];
  }
  std::cerr << "no dtype " << name << "\n";
  std::exit(2);
}

bool read_case(const std::string& line, Case* c) {
  std::istringstream in(line);
  std::string dtype, stored;
  in >> c->name >> dtype >> stored >> c->heads >> c->kv_heads >> c->head_dim >> c->value_dim >>
      c->page >> c->left >> c->right >> c->softcap >> c->alibi >> c->sinks >> c->scaled >>
      c->fixed >> c->seed >> c->sequences;
  c->queries.resize(c->sequences);
  c->keys.resize(c->sequences);
  c->causal.resize(c->sequences);
  for (int64_t& n : c->queries) in >> n;
  for (int64_t& n : c->keys) in >> n;
  for (bool& flag : c->causal) in >> flag;
  if (!in) return false;
  c->dtype = dtype_named(dtype);
  c->stored = dtype_named(stored);
  return true;
}

// The tensors of a case: dense keys, or pages in a drawn order whose unused slots hold NaN.
struct Inputs {
  std::vector<char> q, k, v, out;
  std::vector<float> lse, slopes, sinks, k_scale, v_scale;
  std::vector<int32_t> cu_queries, cu_keys, used, table;
  std::unique_ptr<bool[]> causal;
  int64_t width = 0, pages = 0;
  Attention attention;
  Batch batch;
};

int64_t total(const std::vector<int64_t>& lengths) {
  int64_t sum = 0;
  for (int64_t n : lengths) sum += n;
  return sum;
}

void fill(Random& random, DType dtype, int64_t count, std::vector<char>* to) {
  to->resize(count * size_of(dtype) + 64);  // a view may begin at its last element
  for (int64_t i = 0; i < count; ++i) draw(random, dtype, to->data() + i * size_of(dtype));
}

void draw_pages(const Case& c, Random& random, Inputs* x) {
  std::vector<int64_t> needed;
  for (int64_t n : c.keys) needed.push_back((n + c.page - 1) / c.page);
  x->pages = total(needed) + 2;
  for (int64_t n : needed) x->width = std::max(x->width, n + 1);
  std::vector<int32_t> order(x->pages);
  for (int64_t i = 0; i < x->pages; ++i) order[i] = static_cast<int32_t>(i);
  std::shuffle(order.begin(), order.end(), random);
  x->table.assign(c.sequences * x->width, INT32_MIN);
  std::vector<bool> used(x->pages * c.page);
  int64_t next = 0;
  for (int64_t i = 0; i < c.sequences; ++i) {
    x->used.push_back(static_cast<int32_t>(c.keys[i]));
    for (int64_t p = 0; p < needed[i]; ++p) {
      const int32_t page = order[next++];
      x->table[i * x->width + p] = page;
      for (int64_t s = 0; s < c.page && p * c.page + s < c.keys[i]; ++s)
        used[page * c.page + s] = true;
    }
  }
  const int64_t size = size_of(c.stored);
  fill(random, c.stored, x->pages * c.page * c.kv_heads * c.head_dim, &x->k);
  fill(random, c.stored, x->pages * c.page * c.kv_heads * c.value_dim, &x->v);
  for (int64_t slot = 0; slot < x->pages * c.page; ++slot) {
    if (used[slot]) continue;
    for (int64_t i = 0; i < c.kv_heads * c.head_dim; ++i)
      put_nan(c.stored, x->k.data() + (slot * c.kv_heads * c.head_dim + i) * size);
    for (int64_t i = 0; i < c.kv_heads * c.value_dim; ++i)
      put_nan(c.stored, x->v.data() + (slot * c.kv_heads * c.value_dim + i) * size);
  }
}

std::vector<int32_t> offsets(const std::vector<int64_t>& lengths) {
  std::vector<int32_t> sums{0};
  for (int64_t n : lengths) sums.push_back(sums.back() + static_cast<int32_t>(n));
  return sums;
}

void draw_options(const Case& c, Random& random, Inputs* x) {
  for (int64_t h = 0; h < c.heads; ++h) {
    x->slopes.push_back(static_cast<float>(uniform(random, 0.0, 0.5)));
    x->sinks.push_back(static_cast<float>(uniform(random, -2.0, 2.0)));
  }
  const double unit = c.stored == DType::i8 ? 1.0 / 64 : 1.0;
  for (int64_t h = 0; h < c.kv_heads; ++h) {
    x->k_scale.push_back(static_cast<float>(uniform(random, 0.5, 1.5) * unit));
  }
  x->v_scale.push_back(static_cast<float>(uniform(random, 0.5, 1.5) * unit));
}

void point(const Case& c, Inputs* x) {
  Attention& a = x->attention;
  const int64_t dim = c.head_dim, value_dim = c.value_dim, slot = c.kv_heads;
  const bool paged = c.page > 0;
  auto keys = [&](std::vector<char>& data, int64_t size) {
    return paged ? Rows{data.data(), c.stored, c.page * slot * size, slot * size, size}
                 : Rows{data.data(), c.stored, slot * size, 0, size};
  };
  a.q = {x->q.data(), c.dtype, c.heads * dim, 0, dim};
  a.out = {x->out.data(), c.dtype, c.heads * value_dim, 0, value_dim};
  a.k = keys(x->k, dim);
  a.v = keys(x->v, value_dim);
  a.lse = x->lse.data();
  a.lse_stride = total(c.queries);
  a.page_size = paged ? c.page : 1;
  a.heads = c.heads;
  a.kv_heads = c.kv_heads;
  a.head_dim = dim;
  a.value_dim = value_dim;
  a.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
  a.softcap = static_cast<float>(c.softcap);
  a.left = c.left < 0 ? kUnbounded : c.left;
  if (c.alibi) a.alibi_slopes = x->slopes.data();
  if (c.sinks) a.sinks = x->sinks.data();
  if (c.scaled) {
    a.k_scale = x->k_scale.data();
    a.v_scale = x->v_scale.data();
    a.k_scale_stride = c.kv_heads > 1 ? 1 : 0;
  }
  Batch& b = x->batch;
  b.right = c.right < 0 ? kUnbounded : c.right;
  x->causal = std::make_unique<bool[]>(c.sequences);
  std::copy(c.causal.begin(), c.causal.end(), x->causal.get());
  b.causal_flags = x->causal.get();
  b.size = c.sequences;
  b.query_tokens = total(c.queries);
  b.key_tokens = paged ? 0 : total(c.keys);
  b.cu_queries = x->cu_queries.data();
  b.cu_keys = paged ? nullptr : x->cu_keys.data();
  b.used_keys = paged ? x->used.data() : nullptr;
  b.table = paged ? x->table.data() : nullptr;
  b.table_stride = b.table_width = x->width;
  b.pages = x->pages;
  b.page_size = a.page_size;
}

void draw_inputs(const Case& c, Inputs* x) {
  Random random(c.seed);
  fill(random, c.dtype, total(c.queries) * c.heads * c.head_dim, &x->q);
  if (c.page > 0) {
    draw_pages(c, random, x);
  } else {
    fill(random, c.stored, total(c.keys) * c.kv_heads * c.head_dim, &x->k);
    fill(random, c.stored, total(c.keys) * c.kv_heads * c.value_dim, &x->v);
  }
  draw_options(c, random, x);
  x->cu_queries = offsets(c.queries);
  x->cu_keys = offsets(c.keys);
  x->out.assign(total(c.queries) * c.heads * c.value_dim * size_of(c.dtype) + 64, 0x55);
  x->lse.assign(total(c.queries) * c.heads + 1, NAN);
  point(c, x);
}

void run(const Kernels& kernels, const Case& c, Inputs* x) {
  Attention& a = x->attention;
  a.group = heads_together(a, kernels.block_rows);
  Plan plan;
  make_plan(a, x->batch, kernels.block_rows, 3, c.fixed != 0, &plan);
  std::vector<float> scratch(kernels.scratch_floats(a) + 32);
  auto* aligned =
      reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(scratch.data()) + 63) & ~uintptr_t{63});
  for (const WorkItem& w : plan.items) kernels.attend(a, w, aligned);
  for (const Join& j : plan.joins) kernels.join(a, j);
}

// One sequence's keys or values as numbers, [key][head][dim].
std::vector<double> numbers(const Case& c, const Rows& rows, const Sequence& s, int64_t dim) {
  std::vector<double> all;
  for (int64_t key = 0; key < s.keys; ++key) {
    for (int64_t head = 0; head < c.kv_heads; ++head) {
      const char* row = s.pages == nullptr ? rows.at(s.key_begin + key, 0, head)
                                           : rows.at(s.pages[key / c.page], key % c.page, head);
      for (int64_t d = 0; d < dim; ++d) {
        all.push_back(value_at(row + d * size_of(rows.dtype), rows.dtype));
      }
    }
  }
  return all;
}

// One row by the definition, in float64: its output, the weighted sum of its values' magnitudes,
// and the log of its denominator.
double expected_row(const Case& c, const Inputs& x, const Sequence& s, const double* keys,
                    const double* values, int64_t token, int64_t head, std::vector<double>* out,
                    std::vector<double>* magnitude) {
  const Attention& a = x.attention;
  const int64_t kv = head * c.kv_heads / c.heads, position = token + s.keys - s.queries;
  const double key_scale = c.scaled ? x.k_scale[a.k_scale_stride * kv] : 1.0;
  const double value_scale = c.scaled ? x.v_scale[0] : 1.0;
  std::vector<double> score(s.keys, -INFINITY), q;
  for (int64_t d = 0; d < c.head_dim; ++d) {
    q.push_back(value_at(a.q.at(s.query_begin + token, 0, head) + d * size_of(c.dtype), c.dtype));
  }
  double top = c.sinks ? x.sinks[head] : -INFINITY;
  for (int64_t key = 0; key < s.keys; ++key) {
    if (key < position - a.left || key > position + s.right) continue;
    const double* row = keys + (key * c.kv_heads + kv) * c.head_dim;
    double sum = 0;
    for (int64_t d = 0; d < c.head_dim; ++d) sum += q[d] * row[d];
    sum *= key_scale / std::sqrt(static_cast<double>(c.head_dim));
    if (c.softcap > 0) sum = c.softcap * std::tanh(sum / c.softcap);
    if (c.alibi) sum -= x.slopes[head] * std::fabs(static_cast<double>(position - key));
    score[key] = sum;
    top = std::max(top, sum);
  }
  double denominator = c.sinks ? std::exp(x.sinks[head] - top) : 0.0;
  out->assign(c.value_dim, 0.0);
  magnitude->assign(c.value_dim, 0.0);
  for (int64_t key = 0; key < s.keys; ++key) {
    if (score[key] == -INFINITY) continue;
    const double* row = values + (key * c.kv_heads + kv) * c.value_dim;
    const double weight = std::exp(score[key] - top);
    denominator += weight;
    for (int64_t d = 0; d < c.value_dim; ++d) {
      (*out)[d] += weight * value_scale * row[d];
      (*magnitude)[d] += weight * value_scale * std::fabs(row[d]);
    }
  }
  for (auto* sums : {out, magnitude}) {
    for (double& value : *sums) value = denominator > 0 ? value / denominator : 0.0;
  }
  return denominator > 0 ? top + std::log(denominator) : -INFINITY;
}

bool close(double got, double want, double relative, double magnitude = 0.0) {
  if (std::isinf(want)) return got == want;
  return std::fabs(got - want) <= 1e-5 + relative * (std::fabs(want) + magnitude);
}

bool check(const Kernels& kernels, const Case& c, const Inputs& x) {
  // Pairs of bfloat16 round the weights too, and that is relative to what they weigh.
  const bool rounds_weights = kernels.limits->multiply_pairs != nullptr && c.dtype == DType::bf16;
  const double unit = c.dtype == DType::f32 ? 1e-5 : c.dtype == DType::f16 ? 0x1p-11 : 0x1p-8;
  std::vector<double> want, magnitude;
  for (int64_t i = 0; i < c.sequences; ++i) {
    const Sequence s = read_sequence(x.batch, i);
    const std::vector<double> keys = numbers(c, x.attention.k, s, c.head_dim);
    const std::vector<double> values = numbers(c, x.attention.v, s, c.value_dim);
    for (int64_t t = 0; t < s.queries; ++t) {
      for (int64_t h = 0; h < c.heads; ++h) {
        const double lse =
            expected_row(c, x, s, keys.data(), values.data(), t, h, &want, &magnitude);
        const double got_lse = x.lse[h * x.attention.lse_stride + s.query_begin + t];
        bool good = close(got_lse, lse, 1e-5);
        double got = got_lse;
        for (int64_t d = 0; good && d < c.value_dim; ++d) {
          const char* p = x.attention.out.at(s.query_begin + t, 0, h) + d * size_of(c.dtype);
          got = value_at(p, c.dtype);
          good = close(got, want[d], 1.01 * unit, rounds_weights ? magnitude[d] : 0.0);
        }
        if (good) continue;
        std::cout << c.name << ": sequence " << i << ", query " << t << ", head " << h << ": got "
                  << got << "; log-sum-exp " << got_lse << ", expected " << lse << "\n";
        return false;
      }
    }
  }
  return true;
}

int attention(const Kernels& kernels, const char* file) {
  std::ifstream lines(file);
  std::string line;
  int right = 0, all = 0;
  while (std::getline(lines, line)) {
    Case c;
    if (!read_case(line, &c)) {
      std::cerr << "not a case: " << line << "\n";
      return 2;
    }
    Inputs x;
    draw_inputs(c, &x);
    ++all;
    if (!kernels.serves(x.attention)) continue;
    run(kernels, c, &x);
    right += check(kernels, c, x) ? 1 : 0;
  }
  std::cout << kernels.name << ": " << right << " of " << all << " cases\n";
  return right == all && all > 0 ? 0 : 1;
}

// The largest error relative to the right value over a grid of float32 between two, ends included.
// Results under `least` may be zero.
double worst(void (*function)(const float*, float*, int64_t), double (*exact)(double), float from,
             float to, double least) {
  constexpr int kPoints = 1 << 20, kBatch = 1 << 10;
  double most = 0.0;
  std::vector<float> x(kBatch), y(kBatch);
  for (int first = 0; first < kPoints; first += kBatch) {
    for (int i = 0; i < kBatch; ++i) {
      x[i] = static_cast<float>(from + (double{to} - from) * (first + i) / (kPoints - 1));
    }
    function(x.data(), y.data(), kBatch);
    for (int i = 0; i < kBatch; ++i) {
      const double want = exact(x[i]);
      if (std::fabs(want) <= least && y[i] == 0.0f) continue;
      const double error = std::fabs(y[i] - want) / std::fabs(want);
      most = error > most || error != error ? error : most;
    }
  }
  return most;
}

int functions(const Kernels& kernels) {
  const auto* named = kernels.limits->functions;  // exp and tanh come first
  struct {
    void (*exp)(const float*, float*, int64_t);
    void (*tanh)(const float*, float*, int64_t);
  } f{named[0].map, named[1].map};
  const double exp_error = std::max(worst(f.exp, std::exp, -87.0f, 0.0f, 1.7e-38),
                                    worst(f.exp, std::exp, -1.0f, -1e-6f, 0.0));
  const double tanh_error = std::max(worst(f.tanh, std::tanh, -40.0f, 40.0f, 0.0),
                                     worst(f.tanh, std::tanh, 1e-6f, 0.1f, 0.0));
  const float ends[] = {0.0f, -INFINITY, NAN, -104.0f, -3.0e38f};
  float got[5];
  f.exp(ends, got, 5);
  std::cout << kernels.name << ": exp " << exp_error << " tanh " << tanh_error << " at 0 " << got[0]
            << " at -inf " << got[1] << " at nan " << got[2] << " at -104 " << got[3] << "\n";
  const bool ends_right =
      got[0] == 1.0f && got[1] == 0.0f && got[2] != got[2] && got[3] == 0.0f && got[4] == 0.0f;
  return exp_error < 1e-6 && tanh_error < 1e-6 && ends_right ? 0 : 1;
}

// The stored number nearest to x, the even one of two; beyond the range its end.
bool is_nearest(DType dtype, double x, uint32_t got) {
  if (std::isnan(x)) return dtype == DType::i8 ? got == 0 : std::isnan(decode(dtype, got));
  const double error = std::fabs(decode(dtype, got) - x);
  for (uint32_t bits = 0; bits < 256; ++bits) {
    const double other = decode(dtype, bits);
    if (!std::isfinite(other)) continue;
    const double distance = std::fabs(other - x);
    if (distance < error) return false;
    if (distance == error && (got & 1) && !(bits & 1) && other != decode(dtype, got)) return false;
  }
  return true;
}

int rows(const Kernels& kernels) {
  Random random(7);
  int wrong = 0;
  for (DType stored : {DType::e4m3, DType::e5m2, DType::i8}) {
    std::vector<float> x(1000);
    const double most = stored == DType::e5m2 ? 70000.0 : stored == DType::e4m3 ? 500.0 : 140.0;
    for (size_t i = 0; i < x.size(); ++i) {
      x[i] = static_cast<float>(uniform(random, -1.0, 1.0) * most * std::pow(2.0, -(int(i) % 24)));
      if (i % 7 == 0) x[i] = std::nearbyint(x[i] * 2) / 2;  // ties
    }
    x[0] = NAN;
    x[1] = INFINITY;
    std::vector<char> to(x.size());
    kernels.cache->copy({reinterpret_cast<char*>(x.data()), DType::f32, 0, 0},
                        {to.data(), stored, 0, 0}, 1, static_cast<int64_t>(x.size()), nullptr, 0,
                        false);
    for (size_t i = 0; i < x.size(); ++i) {
      const double clipped = stored == DType::i8 ? std::min(x[i], 127.0f) : x[i];
      const uint32_t got = static_cast<uint8_t>(to[i]);
      if (i == 1 ? !std::isfinite(decode(stored, got)) : !is_nearest(stored, clipped, got)) ++wrong;
    }
  }
  std::cout << kernels.name << ": " << wrong << " rounded wrong\n";
  return wrong == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const Kernels* kernels = find_kernels(argv[1]);
  if (kernels == nullptr) {
    std::cerr << argv[1] << " does not run here\n";
    return 3;
  }
  const std::string what = argv[2];
  if (what == "attention" && argc > 3) return attention(*kernels, argv[3]);
  if (what == "functions") return functions(*kernels);
  if (what == "rows") return rows(*kernels);
  return 2;
}
