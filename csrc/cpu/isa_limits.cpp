// One instruction set's limits, compiled like isa.cpp.
#include "csrc/cpu/amx.h"
#include "csrc/cpu/formats.h"
#include "csrc/cpu/limits.h"
#include "csrc/cpu/panel.h"

namespace mainboard::cpu::MAINBOARD_ISA {

// Keeps the compiler from leaving out what leads to `x`.
static void keep(Vec x) {
  volatile float sink = reduce_add(x);
  (void)sink;
}

static double read(const char* bytes, int64_t count) {
  constexpr int kStreams = 8;
  const float* p = reinterpret_cast<const float*>(bytes);
  const int64_t n = count / static_cast<int64_t>(sizeof(float));
  Vec sum[kStreams];
  for (Vec& s : sum) s = zero();
  int64_t i = 0;
  for (; i + kStreams * kLanes <= n; i += kStreams * kLanes) {
#pragma GCC unroll 8
    for (int j = 0; j < kStreams; ++j) sum[j] = sum[j] + load(p + i + j * kLanes);
  }
  for (int j = 1; j < kStreams; ++j) sum[0] = sum[0] + sum[j];
  keep(sum[0]);
  return static_cast<double>(i) * sizeof(float);
}

static double multiply_add() {
  // Enough independent sums to hide the latency of one, and few enough to stay in registers.
  constexpr int kSums = 10, kRounds = 1 << 14;
  Vec sum[kSums];
  for (int j = 0; j < kSums; ++j) sum[j] = set1(static_cast<float>(j));
  const Vec a = set1(0.999f), b = set1(0.001f);  // every sum tends to 1
  for (int i = 0; i < kRounds; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kSums; ++j) sum[j] = fma(sum[j], a, b);
  }
  for (int j = 1; j < kSums; ++j) sum[0] = sum[0] + sum[j];
  keep(sum[0]);
  return 2.0 * kSums * kLanes * kRounds;
}

#if defined(__AVX512BF16__)
static double multiply_pairs() {
  constexpr int kSums = 10, kRounds = 1 << 14;
  Vec sum[kSums];
  for (int j = 0; j < kSums; ++j) sum[j] = set1(static_cast<float>(j));
  const Vec ones = _mm512_castsi512_ps(_mm512_set1_epi32(0x3f803f80));
  for (int i = 0; i < kRounds; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kSums; ++j) sum[j] = BFloat16Pairs::multiply(ones, ones, sum[j]);
  }
  for (int j = 1; j < kSums; ++j) sum[0] = sum[0] + sum[j];
  keep(sum[0]);
  return 2.0 * BFloat16Pairs::kPack * kSums * kLanes * kRounds;
}
#else
constexpr double (*multiply_pairs)() = nullptr;
#endif

#if defined(__AMX_BF16__)
// Four sums, and two operands that are the same tile of memory.
static void begin_products(const float* operand) {
  _tile_loadd(4, operand, kTileBytes);
  _tile_loadd(5, operand, kTileBytes);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

static double multiply_tiles() {
  constexpr int kRounds = 1 << 11;
  const TileSession session;
  alignas(64) static const float zeros[kTileWords] = {};
  begin_products(zeros);
  for (int i = 0; i < kRounds; ++i) {
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 5);
    _tile_dpbf16ps(2, 4, 5);
    _tile_dpbf16ps(3, 4, 5);
  }
  return 4.0 * kRounds * 2 * kTile * kTile * kTileDims;
}
#endif

#if defined(__AVX512BF16__)
using SoftmaxExponential = Exp2<BFloat16Pairs::kExponentialPowers>;
#else
using SoftmaxExponential = Exp2<Float32Words::kExponentialPowers>;
#endif

static double exponentials() {
  constexpr int kScores = 2048, kRounds = 16;  // as in the softmax: from and to the nearest cache
  float scores[kScores];
  for (int i = 0; i < kScores; ++i) scores[i] = -0.01f * static_cast<float>(i);
  const SoftmaxExponential exponential;
  Vec sum = zero();
  for (int round = 0; round < kRounds; ++round) {
    for (int i = 0; i < kScores; i += 4 * kLanes) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        float* score = scores + i + j * kLanes;
        const Vec e = exponential(load(score));
        sum = sum + e;
        store(score, zero() - e);
      }
    }
  }
  keep(sum);
  return static_cast<double>(kScores) * kRounds;
}

#if defined(__AMX_BF16__)
static double multiply_and_soften() {
  constexpr int kProducts = 32, kRounds = 1 << 7;
  constexpr int kVectors = 2;  // for each product
  const TileSession session;
  alignas(64) float scores[kProducts * kVectors * kLanes];
  for (float& score : scores) score = -1.0f;
  begin_products(scores);
  const SoftmaxExponential exponential;
  Vec sum = zero();
  const float* score = scores;
  const auto soften = [&]() __attribute__((always_inline)) {
    for (int i = 0; i < kVectors; ++i, score += kLanes) sum = sum + exponential(load(score));
    pin(sum);
  };
  for (int round = 0; round < kRounds; ++round, score = scores) {
    for (int i = 0; i < kProducts; i += 4) {
      _tile_dpbf16ps(0, 4, 5);
      soften();
      _tile_dpbf16ps(1, 4, 5);
      soften();
      _tile_dpbf16ps(2, 4, 5);
      soften();
      _tile_dpbf16ps(3, 4, 5);
      soften();
    }
  }
  keep(sum);
  return 2.0 * kRounds * kProducts * kTile * kTile * kTileDims;
}
#endif

template <class Function>
static void map(const float* from, float* to, int64_t n, Function function) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, function(load(from + i)));
  const int left = static_cast<int>(n - i);
  if (left > 0) store_partial(to + i, function(load_partial(from + i, left)), left);
}

static void exp_of(const float* x, float* y, int64_t n) {
  map(x, y, n, [](Vec v) { return exp_nonpositive(v); });
}
static void tanh_of(const float* x, float* y, int64_t n) {
  map(x, y, n, [](Vec v) { return tanh(v); });
}
static void exp2_of(const float* x, float* y, int64_t n) { map(x, y, n, Exp2<5>()); }
static void short_exp2_of(const float* x, float* y, int64_t n) { map(x, y, n, Exp2<4>()); }
#if defined(__AVX512F__)
// NaN in every lane of a vector of which one is not low.
static void low_tanh_of(const float* x, float* y, int64_t n) {
  map(x, y, n, [](Vec v) {
    LowCap cap(kLowTanh, kLowTanhEnd * kLowTanhEnd);
    const Vec result = cap(v, zero());
    return cap.met_high() ? set1(NAN) : result;
  });
}
#endif

extern const Limits limits;
const Limits limits = {
    read,
    multiply_add,
    multiply_pairs,
#if defined(__AMX_BF16__)
    multiply_tiles,
#else
    nullptr,
#endif
    exponentials,
#if defined(__AMX_BF16__)
    multiply_and_soften,
#else
    nullptr,
#endif
    {{"exp", exp_of},
     {"tanh", tanh_of},
     {"exp2", exp2_of},
     {"short exp2", short_exp2_of},
#if defined(__AVX512F__)
     {"low tanh", low_tanh_of},
#endif
     {}},
};

}  // namespace mainboard::cpu::MAINBOARD_ISA
