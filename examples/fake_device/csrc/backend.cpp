// Registers the device with PyTorch: allocator, device guard with streams and events, hooks, random
// generators.
#include "backend.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/Allocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <array>
#include <cstring>

namespace fake {
namespace {

constexpr auto kType = c10::DeviceType::PrivateUse1;

thread_local int device_now = 0;
thread_local std::array<int64_t, 128> stream_now{};  // by device

c10::Device on(int index) { return {kType, static_cast<c10::DeviceIndex>(index)}; }

int index_of(c10::Device device) { return device.has_index() ? device.index() : device_now; }

Queue& queue_of(const c10::Stream& stream) {
  return device(stream.device_index()).queue(stream.id());
}

class Allocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    Device& here = device(device_now);
    void* address = bytes == 0 ? nullptr : here.allocate(bytes);
    TORCH_CHECK_WITH(OutOfMemoryError, bytes == 0 || address != nullptr, "fake:", device_now,
                     " is out of memory: ", bytes, " bytes were asked for, ", here.available(),
                     " of ", here.limit(), " are free");
    return {address, address, &fake::release, on(device_now)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &fake::release; }

  void copy_data(void* target, const void* source, size_t bytes) const override {
    Device& here = device_of(target);
    void* to = here.memory_at(target);
    const void* from = here.memory_at(source);
    here.queue(current_stream(device_now).id()).submit([=] { std::memcpy(to, from, bytes); });
  }
};

Allocator allocator;
REGISTER_ALLOCATOR(kType, &allocator)

// Host memory from which copies need not wait: here, any that is known by its address.
class PinnedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* address = std::malloc(bytes == 0 ? 1 : bytes);
    TORCH_CHECK_WITH(OutOfMemoryError, address != nullptr, bytes, " bytes of pinned memory");
    const std::lock_guard<std::mutex> lock(mutex());
    blocks()[static_cast<const char*>(address)] = bytes;
    return {address, address, &release, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* target, const void* source, size_t bytes) const override {
    std::memcpy(target, source, bytes);
  }

  static bool owns(const void* address) {
    const std::lock_guard<std::mutex> lock(mutex());
    auto after = blocks().upper_bound(static_cast<const char*>(address));
    if (after == blocks().begin()) return false;
    const auto& [begin, bytes] = *std::prev(after);
    return static_cast<const char*>(address) < begin + std::max<size_t>(bytes, 1);
  }

 private:
  static std::mutex& mutex() {
    static auto* const only = new std::mutex;
    return *only;
  }

  static std::map<const char*, size_t>& blocks() {
    static auto* const only = new std::map<const char*, size_t>;
    return *only;
  }

  static void release(void* address) {
    {
      const std::lock_guard<std::mutex> lock(mutex());
      blocks().erase(static_cast<const char*>(address));
    }
    std::free(address);
  }
};

struct Event {
  std::shared_ptr<Mark> mark;
};

class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return kType; }
  c10::DeviceIndex deviceCount() const noexcept override {
    return static_cast<c10::DeviceIndex>(device_count());
  }

  c10::Device getDevice() const override { return on(device_now); }
  void setDevice(c10::Device device) const override { set_current_device(index_of(device)); }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    device_now = device.has_index() ? device.index() : device_now;
  }
  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device before = getDevice();
    setDevice(device);
    return before;
  }

  c10::Stream getStream(c10::Device device) const override {
    return current_stream(index_of(device));
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, on(index_of(device)));
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool high) const override {
    return getNewStream(device, high ? -1 : 0);
  }
  c10::Stream getNewStream(c10::Device on_device, int /*priority*/) const override {
    const int index = index_of(on_device);
    return c10::Stream(c10::Stream::UNSAFE, on(index), device(index).next_stream());
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    const c10::Stream before = current_stream(stream.device_index());
    set_current_stream(stream);
    return before;
  }
  bool queryStream(const c10::Stream& stream) const override {
    Queue& queue = queue_of(stream);
    return queue.done(queue.submitted());
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    queue_of(stream).synchronize();
  }
  void synchronizeDevice(const c10::DeviceIndex index) const override {
    device(index).synchronize();
  }

  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex,
              const c10::EventFlag) const override {
    if (*event == nullptr) *event = new Event;
    auto mark = std::make_shared<Mark>();
    static_cast<Event*>(*event)->mark = mark;
    queue_of(stream).submit([mark] { mark->reach(); });
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (event == nullptr) return;
    queue_of(stream).submit([mark = static_cast<Event*>(event)->mark] { mark->wait(); });
  }
  bool queryEvent(void* event) const override {
    return event == nullptr || static_cast<Event*>(event)->mark->reached();
  }
  void synchronizeEvent(void* event) const override {
    if (event != nullptr) static_cast<Event*>(event)->mark->wait();
  }
  double elapsedTime(void* first, void* second, const c10::DeviceIndex) const override {
    TORCH_CHECK(first != nullptr && second != nullptr && queryEvent(first) && queryEvent(second),
                "an elapsed time was asked for between events that are not both done");
    const auto span =
        static_cast<Event*>(second)->mark->time() - static_cast<Event*>(first)->mark->time();
    return std::chrono::duration<double, std::milli>(span).count();
  }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override {
    delete static_cast<Event*>(event);
  }
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

// Draws on the host from a generator of its own, so that the CPU's is not touched.
class Generator final : public c10::GeneratorImpl {
 public:
  explicit Generator(c10::DeviceIndex index)
      : c10::GeneratorImpl(c10::Device(kType, index),
                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
        host(at::detail::createCPUGenerator()) {}

  void set_current_seed(uint64_t seed) override { host.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { host.set_offset(offset); }
  uint64_t get_offset() const override { return host.get_offset(); }
  uint64_t current_seed() const override { return host.current_seed(); }
  uint64_t seed() override { return host.seed(); }
  void set_state(const c10::TensorImpl& state) override {
    host.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return host.unsafeGetGeneratorImpl()->get_state();
  }

  at::Generator host;

 private:
  Generator* clone_impl() const override {
    auto* copy = new Generator(device().index());
    copy->host = host.clone();
    return copy;
  }
};

struct Hooks final : public at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return fake::device_count() > 0; }
  bool hasPrimaryContext(c10::DeviceIndex index) const override { return started(index); }
  c10::DeviceIndex deviceCount() const override {
    return static_cast<c10::DeviceIndex>(fake::device_count());
  }
  c10::DeviceIndex getCurrentDevice() const override {
    return static_cast<c10::DeviceIndex>(device_now);
  }
  void setCurrentDevice(c10::DeviceIndex index) const override { set_current_device(index); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    const auto before = getCurrentDevice();
    set_current_device(index);
    return before;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override {
    return index < 0 ? getCurrentDevice() : exchangeDevice(index);
  }

  const at::Generator& getDefaultGenerator(c10::DeviceIndex index) const override {
    static auto* const all = [] {
      auto* made = new std::vector<at::Generator>;
      for (int i = 0; i < fake::device_count(); ++i) {
        made->push_back(at::make_generator<Generator>(static_cast<c10::DeviceIndex>(i)));
      }
      return made;
    }();
    return all->at(static_cast<size_t>(index < 0 ? device_now : index));
  }
  at::Generator getNewGenerator(c10::DeviceIndex index) const override {
    return at::make_generator<Generator>(index < 0 ? static_cast<c10::DeviceIndex>(device_now)
                                                   : index);
  }

  c10::Allocator* getPinnedMemoryAllocator() const override {
    static auto* const pinned = new PinnedAllocator;
    return pinned;
  }
  bool isPinnedPtr(const void* data) const override { return PinnedAllocator::owns(data); }
  c10::Device getDeviceFromPtr(void* data) const override {
    for (int index = 0; index < fake::device_count(); ++index) {
      if (started(index) && device(index).owns(data)) return on(index);
    }
    TORCH_CHECK(false, "this is not an address of a fake device");
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    resize_storage(storage, bytes);
  }
};

const bool hooks_registered = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  return true;
}();

}  // namespace

int current_device() { return device_now; }

void set_current_device(int index) {
  TORCH_CHECK_INDEX(index >= 0 && index < device_count(), "fake device ", index,
                    " was asked for, but ", device_count(), " are visible");
  device_now = index;
}

c10::Stream current_stream(int index) {
  return c10::Stream(c10::Stream::UNSAFE, on(index), stream_now.at(static_cast<size_t>(index)));
}

void set_current_stream(c10::Stream stream) {
  stream_now.at(static_cast<size_t>(stream.device_index())) = stream.id();
}

Queue& queue_for(const at::Tensor& tensor) {
  return queue_of(current_stream(tensor.device().index()));
}

at::Tensor seen_by_device(const at::Tensor& tensor) {
  // The task runs in another thread, which is not in the caller's inference mode.
  const c10::InferenceMode outside(false);
  void* address = const_cast<void*>(tensor.const_data_ptr());
  void* memory = tensor.numel() == 0 ? nullptr : device(tensor.device().index()).memory_at(address);
  at::Tensor seen = at::from_blob(memory, tensor.sizes(), tensor.strides(),
                                  at::TensorOptions().dtype(tensor.scalar_type()));
  if (tensor.is_conj()) seen._set_conj(true);
  if (tensor.is_neg()) seen._set_neg(true);
  return seen;
}

void resize_storage(const c10::Storage& storage, size_t bytes) {
  c10::DeviceGuard guard(storage.device());
  c10::DataPtr grown = allocator.allocate(bytes);
  const size_t kept = std::min(bytes, storage.nbytes());
  if (kept != 0) allocator.copy_data(grown.get(), storage.data(), kept);
  storage.set_data_ptr_noswap(std::move(grown));
  storage.set_nbytes(bytes);
}

at::Generator host_generator(const std::optional<at::Generator>& generator, int index) {
  const at::Generator& found = generator.has_value() && generator->defined()
                                   ? *generator
                                   : at::detail::getPrivateUse1Hooks().getDefaultGenerator(
                                         static_cast<c10::DeviceIndex>(index));
  TORCH_CHECK(found.device().type() == kType, "a generator of ", found.device(),
              " was given; expected one of the fake device");
  return static_cast<Generator*>(found.unsafeGetGeneratorImpl())->host;
}

}  // namespace fake
