// What PyTorch's side of the fake device shares: tensors as the device sees them, and its streams.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/Stream.h>

#include "runtime.h"

namespace fake {

int current_device();
void set_current_device(int index);
c10::Stream current_stream(int device);
void set_current_stream(c10::Stream stream);

// The stream that new work on a tensor goes to.
Queue& queue_for(const at::Tensor& tensor);

// The same elements as a tensor of the host, for use inside a task, or after waiting for all work.
at::Tensor seen_by_device(const at::Tensor& tensor);

// Memory on the current device that has grown or shrunk, with its content.
void resize_storage(const c10::Storage& storage, size_t bytes);

at::Generator host_generator(const std::optional<at::Generator>& generator, int device);

}  // namespace fake
