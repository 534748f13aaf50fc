// The module `fake_device._C`.
#include <pybind11/pybind11.h>
#include <torch/csrc/utils/pybind.h>

#include "attention.h"
#include "backend.h"

namespace {

using Release = py::call_guard<py::gil_scoped_release>;

py::tuple stream(int index) {
  const c10::Stream now = fake::current_stream(index);
  return py::make_tuple(now.id(), static_cast<int>(now.device_index()),
                        static_cast<int>(now.device_type()));
}

py::dict stats(int index) {
  fake::MemoryStats now = fake::device(index).stats();
  py::dict found;
  found["allocated_bytes.all.current"] = now.allocated;
  found["allocated_bytes.all.peak"] = now.peak;
  found["freed_in_use_bytes.all.current"] = now.waiting;
  return found;
}

py::tuple memory(int index) {
  fake::Device& device = fake::device(index);
  return py::make_tuple(device.available(), device.limit());
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("device_count", &fake::device_count);
  m.def("current_device", &fake::current_device);
  m.def("set_device", &fake::set_current_device);
  m.def("started", &fake::started);
  m.def("current_stream", &stream);
  m.def("set_stream", [](int64_t id, int index) {
    const c10::Device device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(index));
    fake::set_current_stream(c10::Stream(c10::Stream::UNSAFE, device, id));
  });
  m.def("manual_seed", [](uint64_t seed, int index) {
    fake::host_generator(std::nullopt, index).set_current_seed(seed);
  });
  m.def("synchronize", [](int index) { fake::device(index).synchronize(); }, Release());
  m.def("empty_cache", [](int index) { fake::device(index).empty_cache(); }, Release());
  m.def("memory_stats", &stats);
  m.def("mem_get_info", &memory);
  m.def("reset_peak", [](int index) { fake::device(index).reset_peak(); });
  m.def("attention", &fake::attention, Release());
  m.def("reshape_and_cache", &fake::reshape_and_cache, Release());
  m.def("merge_attention_states", &fake::merge_attention_states, Release());
}
