// CUDA's names with HIP's meanings: what the sources in csrc/cuda that are compiled for AMD's
// devices use, and nothing else. In those sources only includes and the fnuz caches tell of HIP.
//
// What differs beyond names: a device of AMD's starts no grid before the last has ended, so there
// is nothing to wait for and a launch has no attributes; and it has 8-bit floats of two kinds. No
// source here depends on how many lanes a wave has.
#pragma once

#include <hip/hip_fp16.h>
#include <hip/hip_runtime.h>

#include <type_traits>

#include "csrc/hip/float8.h"

#define __grid_constant__

// --- The runtime ---

#define cudaError_t hipError_t
#define cudaSuccess hipSuccess
#define cudaGetErrorString hipGetErrorString
#define cudaGetDevice hipGetDevice
#define cudaSetDevice hipSetDevice
#define cudaDeviceGetAttribute hipDeviceGetAttribute
#define cudaDevAttrMultiProcessorCount hipDeviceAttributeMultiprocessorCount
#define cudaMalloc hipMalloc
#define cudaMemsetAsync hipMemsetAsync
#define cudaStream_t hipStream_t
#define cudaStreamCreateWithFlags hipStreamCreateWithFlags
#define cudaStreamNonBlocking hipStreamNonBlocking
#define cudaStreamSynchronize hipStreamSynchronize
#define cudaStreamDestroy hipStreamDestroy
#define cudaStreamIsCapturing hipStreamIsCapturing
#define cudaStreamCaptureStatus hipStreamCaptureStatus
#define cudaStreamCaptureStatusNone hipStreamCaptureStatusNone
#define cudaStreamCaptureMode hipStreamCaptureMode
#define cudaStreamCaptureModeRelaxed hipStreamCaptureModeRelaxed
#define cudaThreadExchangeStreamCaptureMode hipThreadExchangeStreamCaptureMode
#define cudaFuncSetAttribute hipFuncSetAttribute
#define cudaFuncAttributeMaxDynamicSharedMemorySize hipFuncAttributeMaxDynamicSharedMemorySize

enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  hipStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
inline hipError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel,
                                      void** arguments) {
  return hipLaunchKernel(kernel, config->gridDim, config->blockDim, arguments,
                         config->dynamicSmemBytes, config->stream);
}

// --- Element types ---

#define __nv_bfloat16 ::mainboard::hip::BFloat16
#define __bfloat162float ::mainboard::hip::to_float32
#define __float2bfloat16_rn ::mainboard::hip::to_bfloat16

namespace mainboard::cuda {

inline constexpr char kNamespace[] = "mainboard_hip";
inline constexpr char kTorchLibrary[] = "libtorch_hip.so";

using hip::E4M3;
using hip::E4M3Fnuz;
using hip::E5M2;
using hip::E5M2Fnuz;

// --- What the device does by itself ---

__device__ inline void wait_for_previous_grid() {}
__device__ inline void let_next_grid_start() {}

}  // namespace mainboard::cuda
