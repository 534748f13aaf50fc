// The part of PyTorch's stable C ABI (2.11) that the kernel libraries use.
//
// The functions are declared here rather than included from torch's headers so that a build needs
// no torch at all: pip builds in an isolated environment, where asking for torch would download a
// second copy of several gigabytes. The ABI is PyTorch's promise (torch/csrc/stable/c/shim.h and
// torch/csrc/inductor/aoti_torch/c/shim.h); the symbols resolve against the libtorch that the
// process has already loaded.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "csrc/common/dtype.h"

extern "C" {
struct AtenTensorOpaque;
struct StableListOpaque;
struct TorchLibraryOpaque;
using AtenTensorHandle = AtenTensorOpaque*;
using StableListHandle = StableListOpaque*;
using TorchLibraryHandle = TorchLibraryOpaque*;
using StableIValue = uint64_t;
using AOTITorchError = int32_t;

AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle);
AOTITorchError aoti_torch_get_data_ptr(AtenTensorHandle, void**);
AOTITorchError aoti_torch_get_dim(AtenTensorHandle, int64_t*);
AOTITorchError aoti_torch_get_sizes(AtenTensorHandle, int64_t**);
AOTITorchError aoti_torch_get_strides(AtenTensorHandle, int64_t**);
AOTITorchError aoti_torch_get_dtype(AtenTensorHandle, int32_t*);
AOTITorchError aoti_torch_get_device_type(AtenTensorHandle, int32_t*);
int32_t aoti_torch_device_type_cpu();

AOTITorchError torch_list_size(StableListHandle, size_t*);
AOTITorchError torch_list_get_item(StableListHandle, size_t index, StableIValue*);
AOTITorchError torch_delete_list(StableListHandle);

int32_t aoti_torch_dtype_float32();
int32_t aoti_torch_dtype_float16();
int32_t aoti_torch_dtype_bfloat16();
int32_t aoti_torch_dtype_float8_e4m3fn();
int32_t aoti_torch_dtype_float8_e5m2();
int32_t aoti_torch_dtype_float8_e4m3fnuz();
int32_t aoti_torch_dtype_float8_e5m2fnuz();
int32_t aoti_torch_dtype_uint8();
int32_t aoti_torch_dtype_bool();
int32_t aoti_torch_dtype_int8();
int32_t aoti_torch_dtype_int32();
int32_t aoti_torch_dtype_int64();

AOTITorchError aoti_torch_library_init_impl(const char* ns, const char* key, const char* file,
                                            uint32_t line, TorchLibraryHandle*);
AOTITorchError torch_library_impl(TorchLibraryHandle, const char* name,
                                  void (*)(StableIValue*, uint64_t, uint64_t), uint64_t abi);

AOTITorchError torch_get_num_threads(uint32_t*);
AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t grain,
                                  void (*)(int64_t, int64_t, void*), void* context);
}

namespace mainboard {

// What `torch_library_impl` is told this library was built for: it selects the calling convention.
constexpr uint64_t kTorchAbi = (uint64_t{2} << 56) | (uint64_t{11} << 48);

inline void check(AOTITorchError error, const char* call) {
  if (error != 0) throw std::runtime_error(std::string("torch refused ") + call);
}

inline DType dtype_from_torch(int32_t code) {
  if (code == aoti_torch_dtype_float32()) return DType::f32;
  if (code == aoti_torch_dtype_float16()) return DType::f16;
  if (code == aoti_torch_dtype_bfloat16()) return DType::bf16;
  if (code == aoti_torch_dtype_float8_e4m3fn()) return DType::e4m3;
  if (code == aoti_torch_dtype_float8_e5m2()) return DType::e5m2;
  if (code == aoti_torch_dtype_float8_e4m3fnuz()) return DType::e4m3fnuz;
  if (code == aoti_torch_dtype_float8_e5m2fnuz()) return DType::e5m2fnuz;
  if (code == aoti_torch_dtype_uint8()) return DType::u8;
  if (code == aoti_torch_dtype_bool()) return DType::b8;
  if (code == aoti_torch_dtype_int8()) return DType::i8;
  if (code == aoti_torch_dtype_int32()) return DType::i32;
  if (code == aoti_torch_dtype_int64()) return DType::i64;
  throw std::invalid_argument("a tensor has a dtype that these kernels do not serve");
}

// An owned reference to a tensor, with its facts read once.
class Tensor {
 public:
  explicit Tensor(AtenTensorHandle handle) : handle_(handle) {
    int32_t code = 0;
    check(aoti_torch_get_data_ptr(handle, &data_), "get_data_ptr");
    check(aoti_torch_get_dim(handle, &dim_), "get_dim");
    check(aoti_torch_get_sizes(handle, &sizes_), "get_sizes");
    check(aoti_torch_get_strides(handle, &strides_), "get_strides");
    check(aoti_torch_get_dtype(handle, &code), "get_dtype");
    dtype_ = dtype_from_torch(code);
  }
  Tensor(Tensor&& other) noexcept { swap(other); }
  Tensor& operator=(Tensor&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Tensor() {
    if (handle_ != nullptr) aoti_torch_delete_tensor_object(handle_);
  }

  template <class T>
  T* data() const {
    return static_cast<T*>(data_);
  }
  int64_t dim() const { return dim_; }
  int64_t size(int64_t d) const { return sizes_[d]; }
  int64_t stride(int64_t d) const { return strides_[d]; }
  DType dtype() const { return dtype_; }
  AtenTensorHandle handle() const { return handle_; }
  bool on_cpu() const {
    int32_t type = 0;
    check(aoti_torch_get_device_type(handle_, &type), "get_device_type");
    return type == aoti_torch_device_type_cpu();
  }
  int64_t numel() const {
    int64_t n = 1;
    for (int64_t d = 0; d < dim_; ++d) n *= sizes_[d];
    return n;
  }

 private:
  void swap(Tensor& other) noexcept {
    std::swap(handle_, other.handle_);
    std::swap(data_, other.data_);
    std::swap(dim_, other.dim_);
    std::swap(sizes_, other.sizes_);
    std::swap(strides_, other.strides_);
    std::swap(dtype_, other.dtype_);
  }

  AtenTensorHandle handle_ = nullptr;
  void* data_ = nullptr;
  int64_t dim_ = 0;
  int64_t* sizes_ = nullptr;
  int64_t* strides_ = nullptr;
  DType dtype_ = DType::f32;
};

// Reads a boxed kernel's arguments in schema order and takes ownership of each.
class Arguments {
 public:
  explicit Arguments(StableIValue* stack) : next_(stack) {}

  Tensor tensor() { return Tensor(take<AtenTensorHandle>()); }
  std::optional<Tensor> optional_tensor() {
    // An optional travels as a heap cell that the callee frees, or as null.
    auto* cell = take<StableIValue*>();
    if (cell == nullptr) return std::nullopt;
    auto handle = decode<AtenTensorHandle>(*cell);
    delete cell;
    return Tensor(handle);
  }
  std::vector<Tensor> tensors() {
    auto* list = take<StableListHandle>();
    size_t count = 0;
    check(torch_list_size(list, &count), "list_size");
    std::vector<Tensor> result;
    result.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      StableIValue item = 0;
      check(torch_list_get_item(list, i, &item), "list_get_item");
      result.emplace_back(decode<AtenTensorHandle>(item));
    }
    check(torch_delete_list(list), "delete_list");
    return result;
  }
  int64_t integer() { return take<int64_t>(); }
  double real() { return take<double>(); }
  bool boolean() { return take<bool>(); }

 private:
  template <class T>
  static T decode(StableIValue value) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(StableIValue));
    T result;
    const char* bytes = reinterpret_cast<const char*>(&value);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    bytes += sizeof(StableIValue) - sizeof(T);
#endif
    std::memcpy(&result, bytes, sizeof(T));
    return result;
  }
  template <class T>
  T take() {
    return decode<T>(*next_++);
  }

  StableIValue* next_;
};

// Registers implementations of a namespace's operators for one dispatch key when the library is
// loaded.
class Implementations {
 public:
  explicit Implementations(const char* key, const char* space = "mainboard") {
    check(aoti_torch_library_init_impl(space, key, __FILE__, __LINE__, &library_),
          "library_init_impl");
  }
  Implementations& add(const char* name, void (*kernel)(StableIValue*, uint64_t, uint64_t)) {
    check(torch_library_impl(library_, name, kernel, kTorchAbi), name);
    return *this;
  }

 private:
  TorchLibraryHandle library_ = nullptr;
};

inline int64_t num_threads() {
  uint32_t count = 1;
  check(torch_get_num_threads(&count), "get_num_threads");
  return count;
}

// Runs `body(i)` for every i in [0, n) on torch's intra-op threads.
template <class Body>
void parallel_for(int64_t n, int64_t grain, Body&& body) {
  auto run = [](int64_t begin, int64_t end, void* context) {
    auto& call = *static_cast<std::remove_reference_t<Body>*>(context);
    for (int64_t i = begin; i < end; ++i) call(i);
  };
  check(torch_parallel_for(0, n, grain, run, &body), "parallel_for");
}

}  // namespace mainboard
