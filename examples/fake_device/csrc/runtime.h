// The fake device's runtime: what a driver would be. It knows nothing of PyTorch's tensors.
//
// A device has an address range that the host cannot read, a limit of memory, and streams that run
// their work in threads of their own. Nothing is started before a device is used, and a process
// that was forked after that cannot use it, as with real drivers.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace fake {

using Task = std::function<void()>;
using Clock = std::chrono::steady_clock;

// A point in a stream's work that others can wait for.
class Mark {
 public:
  void reach();
  void wait();
  bool reached() const { return done_.load(std::memory_order_acquire); }
  Clock::time_point time() const { return time_; }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<bool> done_{false};
  Clock::time_point time_;
};

// One stream: its work is done in order, by a thread that starts with the first of it.
class Queue {
 public:
  uint64_t submit(Task task);
  uint64_t submitted() const { return submitted_.load(std::memory_order_acquire); }
  bool done(uint64_t ticket) const { return completed_.load(std::memory_order_acquire) >= ticket; }
  // Waits for all that was submitted, and throws what went wrong in it.
  void synchronize();

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task> tasks_;
  std::atomic<uint64_t> submitted_{0};
  std::atomic<uint64_t> completed_{0};
  std::string error_;
  bool running_ = false;
};

struct MemoryStats {
  size_t allocated = 0;  // in use by tensors
  size_t peak = 0;       // the most of it
  size_t waiting = 0;    // freed, while queued work may still use it
};

constexpr int kStreams = 17;  // the default one, and those that are given out in turn

class Device {
 public:
  Device(int index, size_t limit);

  // The device's addresses; null when there is not enough memory, even after waiting for work.
  void* allocate(size_t bytes);
  void free(void* address);
  bool owns(const void* address) const;
  // Where the device itself finds what is at one of its addresses.
  void* memory_at(const void* address) const;

  Queue& queue(int64_t stream) { return queues_.at(static_cast<size_t>(stream)); }
  int64_t next_stream();
  void synchronize();

  void empty_cache();
  MemoryStats stats();
  void reset_peak();
  size_t limit() const { return limit_; }
  size_t available();

 private:
  struct Freed {
    size_t offset;
    size_t size;
    std::vector<std::pair<Queue*, uint64_t>> pending;
  };

  bool take(size_t size, size_t* offset);
  void give_back(size_t offset, size_t size);
  void reclaim();

  const int index_;
  const size_t limit_;
  char* addresses_ = nullptr;  // reserved, and never readable
  char* memory_ = nullptr;     // the same bytes, as the device sees them
  std::mutex mutex_;
  std::map<size_t, size_t> blocks_;  // offset and size of what is free
  std::map<size_t, size_t> used_;
  std::vector<Freed> freed_;
  MemoryStats stats_;
  std::atomic<int64_t> next_{0};
  std::vector<Queue> queues_;
};

// How many devices are visible; starts nothing.
int device_count();

// A device, started. Throws when there is none of that number, or after a fork.
Device& device(int index);

// The started device that an address belongs to.
Device& device_of(const void* address);

// Frees memory; a process that was forked from its owner leaves it alone.
void release(void* address) noexcept;

bool started(int index);

}  // namespace fake
