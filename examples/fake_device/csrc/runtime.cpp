#include "runtime.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <thread>

namespace fake {
namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kDefaultMiB = 256;

std::atomic<bool> any_started{false};
std::atomic<bool> forked{false};

void after_fork_in_child() {
  if (any_started.load()) forked.store(true);
}

size_t number_from(const char* name, size_t otherwise) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return otherwise;
  char* end = nullptr;
  const unsigned long value = std::strtoul(text, &end, 10);
  if (*end != '\0')
    throw std::runtime_error(std::string(name) + " is '" + text + "', not a number");
  return value;
}

// FAKE_DEVICES are plugged in, of which FAKE_VISIBLE_DEVICES lists those that are visible.
int count_visible() {
  const int plugged = static_cast<int>(number_from("FAKE_DEVICES", 0));
  const char* text = std::getenv("FAKE_VISIBLE_DEVICES");
  if (text == nullptr) return plugged;
  int visible = 0;
  for (const char* at = text; *at != '\0'; ++visible) {
    char* end = nullptr;
    const long id = std::strtol(at, &end, 10);
    if (end == at || id < 0 || id >= plugged) break;  // as others do: the rest is not visible
    at = *end == ',' ? end + 1 : end;
  }
  return visible;
}

char* map(size_t bytes, int protection) {
  void* found =
      mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) throw std::runtime_error("the fake device cannot reserve its memory");
  return static_cast<char*>(found);
}

// Leaked: its threads are still there when the process ends.
struct Board {
  std::mutex mutex;
  std::vector<std::unique_ptr<Device>> devices;
};

Board& board() {
  static Board* const only = [] {
    pthread_atfork(nullptr, nullptr, after_fork_in_child);
    auto* made = new Board;
    made->devices.resize(static_cast<size_t>(device_count()));
    return made;
  }();
  return *only;
}

}  // namespace

void Mark::reach() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    time_ = Clock::now();
    done_.store(true, std::memory_order_release);
  }
  changed_.notify_all();
}

void Mark::wait() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return reached(); });
}

uint64_t Queue::submit(Task task) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!running_) {
    std::thread(&Queue::run, this).detach();
    running_ = true;
  }
  tasks_.push_back(std::move(task));
  changed_.notify_all();
  return ++submitted_;
}

void Queue::run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return !tasks_.empty(); });
    Task task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    std::string error;
    try {
      task();
    } catch (const std::exception& raised) {
      error = raised.what();
      error.resize(std::min(error.size(), error.find('\n')));  // what follows is a stack
    }
    task = nullptr;  // what it holds goes before it counts as done
    lock.lock();
    if (error_.empty()) error_ = error;
    ++completed_;
    changed_.notify_all();
  }
}

void Queue::synchronize() {
  std::unique_lock<std::mutex> lock(mutex_);
  const uint64_t ticket = submitted();
  changed_.wait(lock, [&] { return done(ticket); });
  if (error_.empty()) return;
  const std::string error = std::exchange(error_, {});
  throw std::runtime_error("work on the fake device failed: " + error);
}

Device::Device(int index, size_t limit)
    : index_(index),
      limit_(limit),
      addresses_(map(limit, PROT_NONE)),
      memory_(map(limit, PROT_READ | PROT_WRITE)),
      blocks_{{0, limit}},
      queues_(kStreams) {}

void* Device::allocate(size_t bytes) {
  const size_t size = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  size_t offset = 0;
  std::unique_lock<std::mutex> lock(mutex_);
  reclaim();
  if (!take(size, &offset)) {
    lock.unlock();
    synchronize();
    lock.lock();
    reclaim();
    if (!take(size, &offset)) return nullptr;
  }
  used_[offset] = size;
  stats_.allocated += size;
  stats_.peak = std::max(stats_.peak, stats_.allocated);
  return addresses_ + offset;
}

// Takes the smallest free block that fits.
bool Device::take(size_t size, size_t* offset) {
  auto best = blocks_.end();
  for (auto block = blocks_.begin(); block != blocks_.end(); ++block) {
    if (block->second >= size && (best == blocks_.end() || block->second < best->second)) {
      best = block;
    }
  }
  if (best == blocks_.end()) return false;
  *offset = best->first;
  const size_t rest = best->second - size;
  blocks_.erase(best);
  if (rest != 0) blocks_[*offset + size] = rest;
  return true;
}

void Device::free(void* address) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = used_.find(static_cast<size_t>(static_cast<char*>(address) - addresses_));
  Freed freed{found->first, found->second, {}};
  used_.erase(found);
  stats_.allocated -= freed.size;
  for (Queue& queue : queues_) {
    const uint64_t ticket = queue.submitted();
    if (!queue.done(ticket)) freed.pending.emplace_back(&queue, ticket);
  }
  stats_.waiting += freed.size;
  freed_.push_back(std::move(freed));
  reclaim();
}

// Makes free again what no queued work can use any more.
void Device::reclaim() {
  const auto is_done = [](const std::pair<Queue*, uint64_t>& work) {
    return work.first->done(work.second);
  };
  const auto still = std::partition(freed_.begin(), freed_.end(), [&](const Freed& freed) {
    return !std::all_of(freed.pending.begin(), freed.pending.end(), is_done);
  });
  for (auto freed = still; freed != freed_.end(); ++freed) {
    give_back(freed->offset, freed->size);
    stats_.waiting -= freed->size;
  }
  freed_.erase(still, freed_.end());
}

void Device::give_back(size_t offset, size_t size) {
  auto after = blocks_.lower_bound(offset);
  if (after != blocks_.end() && offset + size == after->first) {
    size += after->second;
    after = blocks_.erase(after);
  }
  if (after != blocks_.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second == offset) {
      before->second += size;
      return;
    }
  }
  blocks_[offset] = size;
}

bool Device::owns(const void* address) const {
  const char* at = static_cast<const char*>(address);
  return at >= addresses_ && at < addresses_ + limit_;
}

void* Device::memory_at(const void* address) const {
  return memory_ + (static_cast<const char*>(address) - addresses_);
}

int64_t Device::next_stream() { return 1 + next_++ % (kStreams - 1); }

void Device::synchronize() {
  for (Queue& queue : queues_) queue.synchronize();
}

void Device::empty_cache() {
  synchronize();
  const std::lock_guard<std::mutex> lock(mutex_);
  reclaim();
}

MemoryStats Device::stats() {
  const std::lock_guard<std::mutex> lock(mutex_);
  reclaim();
  return stats_;
}

void Device::reset_peak() {
  const std::lock_guard<std::mutex> lock(mutex_);
  stats_.peak = stats_.allocated;
}

size_t Device::available() {
  const MemoryStats now = stats();
  return limit_ - now.allocated - now.waiting;
}

int device_count() {
  static const int count = count_visible();
  return count;
}

Device& device(int index) {
  if (index < 0 || index >= device_count()) {
    throw std::out_of_range("fake device " + std::to_string(index) + " was asked for, but " +
                            std::to_string(device_count()) + " are visible");
  }
  if (forked.load()) {
    throw std::runtime_error(
        "the fake device was started before this process was forked from its parent; use it in "
        "the parent only after the fork, or start workers with 'spawn'");
  }
  Board& all = board();
  const std::lock_guard<std::mutex> lock(all.mutex);
  auto& found = all.devices[static_cast<size_t>(index)];
  if (!found) {
    any_started.store(true);
    found = std::make_unique<Device>(index, number_from("FAKE_DEVICE_MEMORY", kDefaultMiB) << 20);
  }
  return *found;
}

Device& device_of(const void* address) {
  for (int index = 0; index < device_count(); ++index) {
    if (started(index) && device(index).owns(address)) return device(index);
  }
  throw std::invalid_argument("this is not an address of a fake device");
}

void release(void* address) noexcept {
  if (address != nullptr && !forked.load()) device_of(address).free(address);
}

bool started(int index) {
  if (!any_started.load() || index < 0 || index >= device_count()) return false;
  Board& all = board();
  const std::lock_guard<std::mutex> lock(all.mutex);
  return all.devices[static_cast<size_t>(index)] != nullptr;
}

}  // namespace fake
