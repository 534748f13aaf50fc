// Asking for memory before it is needed, a little at a time.
#pragma once

#include "csrc/cpu/rows.h"

namespace mainboard::cpu::MAINBOARD_ISA {

// Rows that are wanted soon. Their cache lines are asked for in equal portions between products, so
// that they arrive while the processor multiplies.
template <int kMost>
class Ahead {
 public:
  void clear() { count_ = next_ = lines_ = 0; }

  // Adds rows of equal length, up to kMost in all.
  const char** add(int count, int64_t bytes) {
    const char** to = rows_ + count_;
    for (int i = count_; i < count_ + count; ++i) bytes_[i] = static_cast<int32_t>(bytes);
    count_ += count;
    lines_ += count * (bytes / kLine + 1);
    return to;
  }

  // Everything, spread over so many calls of ask().
  void spread(int64_t calls) {
    offset_ = 0;
    portion_ = static_cast<int>(lines_ / (calls > 0 ? calls : 1)) + 1;
  }

  void ask() {
    for (int i = 0; i < portion_ && next_ < count_; ++i) {
      __builtin_prefetch(rows_[next_] + offset_, 0, 2);  // into the second-level cache
      offset_ += kLine;
      if (offset_ >= bytes_[next_]) {
        offset_ = 0;
        ++next_;
      }
    }
  }

 private:
  static constexpr int kLine = 64;
  const char* rows_[kMost];
  int32_t bytes_[kMost];
  int64_t lines_ = 0;
  int count_ = 0, next_ = 0, portion_ = 0, offset_ = 0;
};

}  // namespace mainboard::cpu::MAINBOARD_ISA
