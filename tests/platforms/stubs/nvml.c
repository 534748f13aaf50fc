// Stands for NVML: answers what the environment variable STUB_NVML says, one thing on a line.
//
//   init CODE | init hang | init late | init crash | init exit | init chatter
//   driver VERSION CUDA            (CUDA 0: unsupported)
//   device UUID MAJOR MINOR BYTES NAME        (BYTES 0: unsupported)
//   lost CODE                      (the device above answers every question with this)
//   divided                        (the device above is in the mode in which it has slices)
//   slice PLACE UUID BYTES MULTIPROCESSORS NAME
//   nvlink FIRST SECOND            (both ways)
//   stuck                          (asking what is between two devices never returns)
//   garbage                        (every number of a device is nonsense, every text unreadable)
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, DEVICES = 8, SLICES = 7 };

typedef struct Device {
  char uuid[96], name[96];
  int major, minor, lost, divided, present, multiprocessors;
  unsigned long long memory;
  struct Device* slices;
} Device;

static Device devices[DEVICES];
static Device slices[DEVICES][SLICES];
static int count, cuda, garbage, stuck, nvlink[DEVICES][DEVICES];
static char driver[64] = "580.65.06";

static int start(const char* how) {
  if (strcmp(how, "hang") == 0)
    for (;;) pause();
  if (strcmp(how, "late") == 0) sleep(2);
  if (strcmp(how, "crash") == 0) raise(SIGSEGV);
  if (strcmp(how, "exit") == 0) _exit(3);
  if (strcmp(how, "chatter") == 0) puts("nvml: a line that nobody asked for");
  return atoi(how);
}

int nvmlInit_v2(void) {
  const char* setting = getenv("STUB_NVML");
  char text[8192] = "", how[16] = "0";
  strncpy(text, setting ? setting : "", sizeof text - 1);
  cuda = 13000;
  for (char* line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
    Device* last = &devices[count ? count - 1 : 0];
    Device read = {.present = 1};
    int place = 0, other = 0;
    if (sscanf(line, "init %15s", how) == 1) continue;
    if (sscanf(line, "driver %63s %d", driver, &cuda) == 2) continue;
    if (sscanf(line, "device %95s %d %d %llu %95[^\n]", read.uuid, &read.major, &read.minor,
               &read.memory, read.name) == 5) {
      read.slices = slices[count];
      devices[count++] = read;
    } else if (sscanf(line, "slice %d %95s %llu %d %95[^\n]", &place, read.uuid, &read.memory,
                      &read.multiprocessors, read.name) == 5) {
      slices[count - 1][place] = read;
    } else if (sscanf(line, "nvlink %d %d", &place, &other) == 2) {
      nvlink[place][other] = nvlink[other][place] = 1;
    } else if (sscanf(line, "lost %d", &last->lost) != 1) {
      last->divided |= strcmp(line, "divided") == 0;
      garbage |= strcmp(line, "garbage") == 0;
      stuck |= strcmp(line, "stuck") == 0;
    }
  }
  return start(how);
}

const char* nvmlErrorString(int code) {
  return code == 9    ? "Driver Not Loaded"
         : code == 18 ? "Driver/library version mismatch"
         : code == 4  ? "Insufficient Permissions"
         : code == 15 ? "GPU is lost"
                      : "Unknown Error";
}

static int say(char* out, unsigned size, const char* text) {
  snprintf(out, size, "%s", garbage ? "\xff\xfe\t\n\x01" : text);
  return OK;
}

int nvmlSystemGetDriverVersion(char* out, unsigned size) { return say(out, size, driver); }
int nvmlSystemGetCudaDriverVersion(int* out) { return *out = cuda, cuda ? OK : NOT_SUPPORTED; }
int nvmlDeviceGetCount_v2(unsigned* out) { return *out = count, OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned number, Device** out) {
  *out = &devices[number];
  return devices[number].lost;
}

int nvmlDeviceGetName(Device* device, char* out, unsigned size) {
  return say(out, size, device->name);
}

int nvmlDeviceGetUUID(Device* device, char* out, unsigned size) {
  return say(out, size, device->uuid);
}

int nvmlDeviceGetCudaComputeCapability(Device* device, int* major, int* minor) {
  *major = garbage ? -1 : device->major;
  *minor = garbage ? 1 << 30 : device->minor;
  return OK;
}

int nvmlDeviceGetMemoryInfo(Device* device, unsigned long long out[3]) {
  out[0] = garbage ? ~0ull : device->memory;
  out[1] = out[2] = device->memory / 2;
  return device->memory ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetPciInfo_v3(Device* device, char out[68]) {
  snprintf(out + 36, 32, "00000000:%02X:00.0", (unsigned)(device - devices));
  return OK;
}

int nvmlDeviceGetMigMode(Device* device, unsigned* now, unsigned* pending) {
  *now = *pending = device->divided;
  return device->divided ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetMaxMigDeviceCount(Device* device, unsigned* out) { return *out = SLICES, OK; }

int nvmlDeviceGetMigDeviceHandleByIndex(Device* device, unsigned number, Device** out) {
  *out = &device->slices[number];
  return (*out)->present ? OK : NOT_FOUND;
}

int nvmlDeviceGetAttributes_v2(Device* device, unsigned out[10]) {
  out[0] = device->multiprocessors;
  return OK;
}

int nvmlDeviceGetP2PStatus(Device* first, Device* second, unsigned index, unsigned* out) {
  while (stuck) pause();
  *out = index == 2 && !nvlink[first - devices][second - devices] ? 5 : OK;
  return OK;
}

int nvmlDeviceGetTopologyCommonAncestor(Device* first, Device* second, unsigned* out) {
  return *out = 50, OK;
}
