// The stream of blocks of an AMX work item: what each step does, and what goes between steps.
#pragma once

#include "csrc/cpu/amx_shape.h"
#include "csrc/cpu/amx_step.h"

#if defined(__AMX_BF16__)

namespace mainboard::cpu::MAINBOARD_ISA {

// Words of a packed block, whose keys come before their values, and of its weights.
struct BlockWords {
  int64_t k, v, weights;
  int64_t packed() const { return k + v; }
};

// Blocks of all panels, one after another: each is the next, then the current one, then part of a
// run whose values are added.
template <Operands kOperands, Score kScore>
class TileStream {
  static constexpr int kRun = kLongestRun<kOperands, kScore>;
  static constexpr int kColumns = kKnownColumns<kOperands, kScore>;

 public:
  TileStream(const Attention& a, const ScorePlan& plan, const TileShape& shape,
             const BlockWords& words, float* scratch)
      : a_(a),
        plan_(plan),
        shape_(shape),
        known_shape_(shape.steps == kKnownShape.steps && shape.columns == kKnownShape.columns),
        words_(words) {
    scores_[0] = scratch;
    scores_[1] = scratch + kTileKeys * kTilePanel;
    weights_ = reinterpret_cast<uint32_t*>(scratch + 2 * kTileKeys * kTilePanel);
  }

  // A panel's blocks of one row, whose keys begin at `key`.
  void push_row(TilePanel* panel, int64_t key, int blocks, const uint32_t* packed) {
    for (int at = 0; at < blocks;) {
      TileStep& next =
          begin_step(panel, key + at * kTileKeys, blocks - at, packed + at * words_.packed());
      if (begins_full_run(next)) {
        at += push_full_run(next);
      } else {
        push(next, at % kRun == 0);
        ++at;
      }
    }
  }

  // Runs what is still under way.
  void drain() {
    if (count_ == 0) return;
    Vec no_peaks[2];  // nothing comes next
    run(nullptr, no_peaks);
    add_rest();
    count_ = 0;
  }

 private:
  TileStep& begin_step(TilePanel* panel, int64_t key, int left, const uint32_t* packed) {
    TileStep& next = steps_[count_ % 2];
    next.panel = panel;
    next.left = left;
    next.k = packed;
    next.v = packed + words_.k;
    next.key = key;
    next.scores = scores_[count_ % 2];
    next.weights = weights_ + count_ % (2 * kRun) * words_.weights;
    next.shaped = next.moved = next.hidden_low = false;
    return next;
  }

  // Whether a run as long as any begins with this block, with nothing to do but known steps until
  // all its blocks have been the next one.
  bool begins_full_run(const TileStep& next) {
    if (!kLate<kOperands, kScore> || kScore == Score::linear) return false;
    const TileStep& now = current();
    const bool between_runs = planned_ == kRun && filling().blocks == kRun - 1 &&
                              added().blocks == kRun && added().column == shape_.columns - kColumns;
    return known_shape_ && between_runs && next.left >= kRun && next.panel->begun &&
           !plan_.always_shaped && !now.shaped && !now.moved &&
           next.panel->sees_all(next.key, kRun * kTileKeys);
  }

  // The blocks of such a run, from its first on. A reference that has to move after all ends it
  // before. Gives how many there were.
  int push_full_run(const TileStep& first) {
    const TileStep* next = &first;
    for (int taken = 1;; ++taken) {
      TileStep& now = current();
      if (added().column == 0) begin_values();
      const bool kept = run_unshaped(next, now, added().column + kColumns, nullptr);
      if (!kept) soften_again(now);
      fill(now);
      ++count_;
      if (!kept || taken == kRun) return taken;
      next = &begin_step(next->panel, next->key + kTileKeys, next->left - 1,
                         next->k + words_.packed());
    }
  }

  // Any other block. Of kRun blocks the first looks how far all of them may rise.
  void push(TileStep& next, bool first) {
    const TilePanel& panel = *next.panel;
    Vec top[2];
    run(&next, top);
    const bool hidden = !panel.sees_all(next.key, kTileKeys);
    const bool low = kScore == Score::capped && kLate<kOperands, kScore> && hidden &&
                     hide_low_products(plan_.factors, next, top);
    const bool looks = !kLate<kOperands, kScore> || !panel.begun;
    if (plan_.always_shaped || (hidden && !low && kScore == Score::capped)) {
      next.shaped = true;
      shape_exponents(a_, plan_.factors, next, top);
    } else if (!low) {
      if (hidden) hide_products(next);
      // A step that is not late has found the peaks already, of what is hidden too.
      if (looks && (hidden || kLate<kOperands, kScore>)) {
        find_peaks<kScore>(plan_.factors, next, top);
      }
    }
    if (looks || next.shaped || low) {
      follow_peak<kOperands>(next, top);
      next.panel->begun = true;
    }
    if (kLate<kOperands, kScore> && kScore == Score::linear && first) {
      follow_rise(next, kRun * kTileKeys);
    }
    if (next.moved && filling().blocks > 0) close();
    ++count_;
  }

  void run(const TileStep* next, Vec* top) {
    if (count_ == 0) {
      MAINBOARD_TILE_FENCE;
      multiply_keys<kOperands>(shape_, *next, NoSlice());
      if (!kLate<kOperands, kScore>) find_peaks<kScore>(plan_.factors, *next, top);
      return;
    }
    TileStep& now = current();
    if (filling().blocks == 0) planned_ = even_share(now.left);
    // The columns of the run before end with the blocks of this one.
    const int until = added().blocks == 0 ? 0 : shape_.columns * (filling().blocks + 1) / planned_;
    if (until > 0 && added().column == 0) begin_values();
    const bool kept = now.shaped ? run_as<Score::plain>(next, now, until, top)
                                 : run_unshaped(next, now, until, top);
    if (!kept) soften_again(now);
    fill(now);
  }

  // The current step, whose scores are not shaped. Under a softcap most scores are low, and only a
  // block that shows otherwise makes the next few be taken as high.
  bool run_unshaped(const TileStep* next, const TileStep& now, int until, Vec* top) {
    if constexpr (kScore == Score::capped && kLate<kOperands, kScore>) {
      constexpr int kTakenAsHigh = 8;
      if (taken_as_high_ == 0 || now.hidden_low) {
        const bool low = run_as<Score::low>(next, now, until, top);
        if (!low) taken_as_high_ = kTakenAsHigh;
        return low;
      }
      --taken_as_high_;
    }
    return run_as<kScore>(next, now, until, top);
  }

  template <Score kNow>
  bool run_as(const TileStep* next, const TileStep& now, int until, Vec* top) {
    TileRun& run = added();
    if constexpr (kLate<kOperands, kScore>) {
      if (known_shape_ && next != nullptr) {
        if (run.blocks == kRun && until == run.column + kColumns) {
          return run_step<kOperands, kNow, kScore, Known::shape_and_run>(
              shape_, plan_.factors, next, &now, run, until, top);
        }
        return run_step<kOperands, kNow, kScore, Known::shape>(shape_, plan_.factors, next, &now,
                                                               run, until, top);
      }
    }
    return run_step<kOperands, kNow, kScore>(shape_, plan_.factors, next, &now, run, until, top);
  }

  // The softmax of a block whose weights left their range.
  void soften_again(TileStep& now) {
    if (now.hidden_low) shape_low(plan_.factors, now);
    if (now.shaped) {
      soften_block_again<kOperands, Score::plain>(plan_.factors, now);
    } else {
      soften_block_again<kOperands, kScore>(plan_.factors, now);
    }
  }

  // How many of `left` blocks go together so that the runs of a row are about as long.
  static int even_share(int left) {
    const int runs = (left + kRun - 1) / kRun;
    return (left + runs - 1) / runs;
  }

  // A block that has its weights becomes part of a run; one whose reference moved begins it.
  void fill(const TileStep& s) {
    if (s.moved && filling().blocks > 0) {
      close();
      planned_ = even_share(s.left);
    }
    TileRun& run = filling();
    if (run.blocks == 0) {
      run.panel = s.panel;
      run.moved = s.moved;
      if (s.moved) std::memcpy(run.keep, s.keep, sizeof run.keep);
    }
    run.v[run.blocks] = s.v;
    run.weights[run.blocks] = s.weights;
    if (++run.blocks == planned_) close();
  }
  // The values of the run that was filled come next.
  void close() {
    add_rest();
    filling_ ^= 1;
    added().column = filling().blocks = 0;
  }
  void begin_values() {
    TileRun& run = added();
    run.fresh = run.panel->fresh;
    if (run.moved && !run.fresh) keep_output(run.panel->o, run.keep, shape_);
    run.panel->fresh = false;
  }
  void add_rest() {
    TileRun& run = added();
    if (run.blocks == 0) return;
    if (run.column == 0) begin_values();
    MAINBOARD_TILE_FENCE;
    multiply_values<kOperands>(shape_, run, shape_.columns, NoSlice());
    MAINBOARD_TILE_FENCE;
    run.blocks = 0;
  }

  TileStep& current() { return steps_[(count_ + 1) % 2]; }  // scored last, not softened yet
  TileRun& filling() { return runs_[filling_]; }
  TileRun& added() { return runs_[filling_ ^ 1]; }

  const Attention& a_;
  const ScorePlan& plan_;
  const TileShape shape_;
  const bool known_shape_;
  const BlockWords words_;
  TileStep steps_[2];
  TileRun runs_[2];
  int filling_ = 0;
  int planned_ = 0;        // blocks of the run that is filled
  int taken_as_high_ = 0;  // blocks to come
  float* scores_[2];
  uint32_t* weights_;
  int64_t count_ = 0;
};

}  // namespace mainboard::cpu::MAINBOARD_ISA

#endif  // __AMX_BF16__
