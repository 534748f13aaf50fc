// The few operations that a device must have itself. Everything else is computed on the host, on
// copies, by PyTorch's fallback: slow, and right.
#include <ATen/EmptyTensor.h>
#include <ATen/ExpandUtils.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

#include <algorithm>
#include <array>

#include "backend.h"

namespace fake {
namespace {

using at::Scalar;
using at::Tensor;
using c10::IntArrayRef;
using c10::SymIntArrayRef;

template <typename T>
using Maybe = std::optional<T>;

c10::Allocator* memory() { return c10::GetAllocator(c10::DeviceType::PrivateUse1); }

constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

Tensor empty(IntArrayRef size, Maybe<at::ScalarType> dtype, Maybe<at::Layout> layout,
             Maybe<at::Device> device, Maybe<bool> pinned, Maybe<at::MemoryFormat> format) {
  TORCH_CHECK(!pinned.value_or(false), "only tensors of the host can be pinned");
  TORCH_CHECK(layout.value_or(at::kStrided) == at::kStrided, "the fake device has no ", *layout);
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(size, memory(), kKeys, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, Maybe<at::ScalarType> dtype,
                     Maybe<at::Layout> layout, Maybe<at::Device> device, Maybe<bool> pinned) {
  TORCH_CHECK(!pinned.value_or(false), "only tensors of the host can be pinned");
  TORCH_CHECK(layout.value_or(at::kStrided) == at::kStrided, "the fake device has no ", *layout);
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(size, stride, memory(), kKeys,
                                           c10::dtype_or_default(dtype));
}

bool here(const Tensor& x) { return x.device().type() == c10::DeviceType::PrivateUse1; }

void to_device(const Tensor& from, const Tensor& to) {
  // The bytes are taken now, so that the host may do what it likes with its own.
  const Tensor plain = from.resolve_conj().resolve_neg();
  const Tensor staged = plain.expand(to.sizes()).to(to.scalar_type()).contiguous().clone();
  const Tensor target = seen_by_device(to);
  queue_for(to).submit([staged, target] { target.copy_(staged); });
}

void within_device(const Tensor& from, const Tensor& to) {
  const Tensor source = seen_by_device(from), target = seen_by_device(to);
  queue_for(to).submit([source, target] { target.copy_(source); });
}

// The target, which may be on the host, is complete when this returns.
Tensor copy_from(const Tensor& from, const Tensor& to, bool non_blocking) {
  if (!here(from)) {
    to_device(from, to);
    if (!non_blocking) queue_for(to).synchronize();
  } else if (!here(to)) {
    queue_for(from).synchronize();
    to.copy_(seen_by_device(from));
  } else if (from.device() == to.device()) {
    within_device(from, to);
  } else {
    queue_for(from).synchronize();
    within_device(from, to);
    queue_for(to).synchronize();
  }
  return to;
}

const Tensor& resize_to(const Tensor& self, IntArrayRef size, Maybe<at::MemoryFormat> format) {
  auto* tensor = self.unsafeGetTensorImpl();
  tensor->set_sizes_contiguous(size);
  if (format.has_value()) tensor->empty_tensor_restride(*format);
  const auto elements = static_cast<size_t>(tensor->storage_offset() + tensor->numel());
  const size_t bytes = elements * tensor->itemsize();
  if (tensor->numel() != 0 && bytes > self.storage().nbytes()) {
    resize_storage(self.storage(), bytes);
  }
  return self;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) resize_to(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

Scalar local_scalar_dense(const Tensor& self) {
  queue_for(self).synchronize();
  return seen_by_device(self).item();
}

Tensor& fill(Tensor& self, const Scalar& value) {
  const Tensor target = seen_by_device(self);
  queue_for(self).submit([target, value] { target.fill_(value); });
  return self;
}

Tensor& zero(Tensor& self) { return fill(self, 0); }

void check_place(const Tensor& one, const Tensor& other) {
  TORCH_CHECK(one.device() == other.device() || (!here(other) && other.dim() == 0),
              "expected all tensors to be on one device, but found ", one.device(), " and ",
              other.device());
}

// In place and in the stream's own time, unlike what the fallback does.
Tensor& add(Tensor& self, const Tensor& other, const Scalar& alpha) {
  check_place(self, other);
  const Tensor target = seen_by_device(self);
  const Tensor source = here(other) ? seen_by_device(other) : other.clone();
  TORCH_CHECK(self.sizes().equals(at::infer_size_dimvector(self.sizes(), other.sizes())),
              "add_ cannot make ", self.sizes(), " of ", other.sizes());
  TORCH_CHECK(at::canCast(at::result_type(self, other), self.scalar_type()), "add_ of ",
              other.scalar_type(), " does not fit into ", self.scalar_type());
  queue_for(self).submit([target, source, alpha] { target.add_(source, alpha); });
  return self;
}

// Random numbers are drawn on the host, from the device's generator.
template <typename Draw>
Tensor& drawn(Tensor& self, const Maybe<at::Generator>& generator, Draw draw) {
  Tensor host = at::empty(self.sizes(), at::TensorOptions().dtype(self.scalar_type()));
  draw(host, host_generator(generator, self.device().index()));
  return self.copy_(host);
}

Tensor& uniform(Tensor& self, double from, double to, Maybe<at::Generator> generator) {
  return drawn(self, generator, [=](Tensor& x, at::Generator g) { x.uniform_(from, to, g); });
}

Tensor& normal(Tensor& self, double mean, double std, Maybe<at::Generator> generator) {
  return drawn(self, generator, [=](Tensor& x, at::Generator g) { x.normal_(mean, std, g); });
}

Tensor& random(Tensor& self, Maybe<at::Generator> generator) {
  return drawn(self, generator, [](Tensor& x, at::Generator g) { x.random_(g); });
}

Tensor& random_to(Tensor& self, int64_t to, Maybe<at::Generator> generator) {
  return drawn(self, generator, [=](Tensor& x, at::Generator g) { x.random_(to, g); });
}

Tensor& random_from(Tensor& self, int64_t from, Maybe<int64_t> to, Maybe<at::Generator> generator) {
  return drawn(self, generator, [=](Tensor& x, at::Generator g) { x.random_(from, to, g); });
}

Tensor& bernoulli(Tensor& self, double p, Maybe<at::Generator> generator) {
  return drawn(self, generator, [=](Tensor& x, at::Generator g) { x.bernoulli_(p, g); });
}

Tensor& exponential(Tensor& self, double lambda, Maybe<at::Generator> generator) {
  return drawn(self, generator, [=](Tensor& x, at::Generator g) { x.exponential_(lambda, g); });
}

Tensor view(const Tensor& self, SymIntArrayRef size) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size));
}

Tensor as_strided(const Tensor& self, SymIntArrayRef size, SymIntArrayRef stride,
                  Maybe<c10::SymInt> offset) {
  const Maybe<int64_t> start =
      offset.has_value() ? Maybe<int64_t>(offset->guard_int(__FILE__, __LINE__)) : std::nullopt;
  return at::native::as_strided_tensorimpl(self, C10_AS_INTARRAYREF_SLOW(size),
                                           C10_AS_INTARRAYREF_SLOW(stride), start);
}

Tensor reshape_alias(const Tensor& self, SymIntArrayRef size, SymIntArrayRef stride) {
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size),
                                    C10_AS_INTARRAYREF_SLOW(stride));
}

Tensor& set_storage(Tensor& self, at::Storage source, int64_t offset, IntArrayRef size,
                    IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  self.unsafeGetTensorImpl()->set_storage_offset(offset);
  if (stride.empty()) {
    self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  } else {
    self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride);
  }
  return self;
}

Tensor& set_whole_storage(Tensor& self, at::Storage source) {
  const auto elements = static_cast<int64_t>(source.nbytes() / self.dtype().itemsize());
  return set_storage(self, std::move(source), 0, {elements}, {});
}

// Operators that take indices from the host, as on other devices.
bool takes_host_tensors(const c10::OperatorHandle& op) {
  static const std::array<const char*, 4> names = {"aten::index", "aten::index_put_",
                                                   "aten::_index_put_impl_", "aten::index_put"};
  return std::any_of(names.begin(), names.end(),
                     [&](const char* name) { return op.operator_name().name == name; });
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto arguments = torch::jit::last(stack, op.schema().arguments().size());
  const bool mixed = takes_host_tensors(op);
  Tensor first;
  const auto look = [&](const Tensor& x) {
    if (!x.defined() || (!here(x) && (x.dim() == 0 || mixed))) return;
    if (!first.defined()) first = x;
    TORCH_CHECK(x.device() == first.device(), "expected all tensors to be on one device, but ",
                op.operator_name(), " was given ", first.device(), " and ", x.device());
  };
  for (const c10::IValue& argument : arguments) {
    if (argument.isTensor()) look(argument.toTensor());
    if (argument.isTensorList()) {
      for (const Tensor& x : argument.toTensorList()) look(x);
    }
  }
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

// A copy minds both marks itself; PyTorch would clone the source first, by a copy.
TORCH_LIBRARY_IMPL(aten, Conjugate, m) {
  m.impl("_copy_from", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, Negative, m) {
  m.impl("_copy_from", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("resize_", resize_to);
  m.impl("set_.source_Storage", set_whole_storage);
  m.impl("set_.source_Storage_storage_offset", set_storage);
  m.impl("view", view);
  m.impl("as_strided", as_strided);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar_dense);
  m.impl("fill_.Scalar", fill);
  m.impl("zero_", zero);
  m.impl("add_.Tensor", add);
  m.impl("uniform_", uniform);
  m.impl("normal_", normal);
  m.impl("random_", random);
  m.impl("random_.to", random_to);
  m.impl("random_.from", random_from);
  m.impl("bernoulli_.float", bernoulli);
  m.impl("exponential_", exponential);
}

}  // namespace
}  // namespace fake
