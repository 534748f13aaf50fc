// Stands for CUDA's driver library: one device of a board, or what STUB_CUDA says it does at start:
// hang, late, crash, garbage, or the number of an error.
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int garbage;

int cuInit(unsigned flags) {
  const char* how = getenv("STUB_CUDA") ? getenv("STUB_CUDA") : "0";
  if (strcmp(how, "hang") == 0)
    for (;;) pause();
  if (strcmp(how, "late") == 0) sleep(2);
  if (strcmp(how, "crash") == 0) raise(SIGSEGV);
  garbage = strcmp(how, "garbage") == 0;
  // Everything was to be asked of, in the order of the bus, whatever the user hides.
  if (getenv("CUDA_VISIBLE_DEVICES") || strcmp(getenv("CUDA_DEVICE_ORDER"), "PCI_BUS_ID")) return 1;
  return atoi(how);
}

int cuDriverGetVersion(int* out) { return *out = 13000, 0; }
int cuDeviceGetCount(int* out) { return *out = 1, 0; }
int cuDeviceGet(int* out, int number) { return *out = 7 + number, 0; }
int cuDeviceGetName(char* out, int size, int device) { return strcpy(out, "Orin"), 0; }
int cuDeviceGetUuid(char* out, int device) { return memset(out, 0xab, 16), 0; }
int cuDeviceTotalMem_v2(size_t* out, int device) { return *out = garbage ? 0 : 1ull << 36, 0; }
int cuDeviceGetPCIBusId(char* out, int size, int device) { return strcpy(out, "0000:00:00.0"), 0; }

int cuDeviceGetAttribute(int* out, int attribute, int device) {
  *out = attribute == 75 ? 8 : attribute == 76 ? 7 : attribute == 18 ? 1 : 16;
  return 0;
}

int cuGetErrorName(int error, const char** out) {
  *out = error == 100   ? "CUDA_ERROR_NO_DEVICE"
         : error == 802 ? "CUDA_ERROR_SYSTEM_NOT_READY"
         : error == 803 ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"
                        : NULL;
  return 0;
}

int cuGetErrorString(int error, const char** out) { return *out = "it is said so", 0; }
