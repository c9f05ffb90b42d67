// libcuda.so.1 that is none: the driver's checkpoint calls with their rules, and as much of the rest as torch, Triton and the
// Python bindings ask for before they do something. STUB_LOG names a log of the checkpoint calls.
//
// Rules that a real driver has too: a step from a wrong state is refused, a process without a context is unknown, reserved
// arguments have to be zero, and a restore needs cuInit in the process that asks for it (persistence mode off).
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>

#include "state.h"

#define API __attribute__((visibility("default")))
enum { INVALID_VALUE = 1, NOT_INITIALIZED = 3, ILLEGAL_STATE = 401, NOT_SUPPORTED = 801 };

static int initialised;

static void say(const char *what, int pid) {
  const char *path = getenv("STUB_LOG");
  FILE *file = path ? fopen(path, "ae") : 0;
  if (!file) return;
  fprintf(file, "%s %d\n", what, pid);
  fclose(file);
}

API int cuInit(unsigned flags) { initialised = 1; return 0; }
API int cuDriverGetVersion(int *version) { *version = 13000; return 0; }

// ---- checkpoints ----------------------------------------------------------------------------------------------------

static int step(const char *name, int pid, const void *arguments, int skip, int from, int to) {
  const unsigned char *bytes = arguments;
  struct process p;
  say(name, pid);
  for (int i = skip; bytes && i < 64; i++) if (bytes[i]) return INVALID_VALUE;
  if (!read_process(pid, &p)) return INVALID_VALUE;
  if (p.state != from) return ILLEGAL_STATE;
  p.state = to;
  if (to == CHECKPOINTED) p.was_parked = 1;
  write_process(pid, &p);
  return 0;
}

API int cuCheckpointProcessGetState(int pid, int *state) {
  struct process p;
  if (!read_process(pid, &p)) return INVALID_VALUE;
  *state = p.state;
  return 0;
}
API int cuCheckpointProcessGetRestoreThreadId(int pid, int *thread) { *thread = pid + 1; return 0; }
API int cuCheckpointProcessLock(int pid, void *arguments) { return step("lock", pid, arguments, 4, RUNNING, LOCKED); }
API int cuCheckpointProcessCheckpoint(int pid, void *arguments) { return step("checkpoint", pid, arguments, 0, LOCKED, CHECKPOINTED); }
API int cuCheckpointProcessRestore(int pid, void *arguments) {
  if (!initialised) { say("restore without cuInit", pid); return NOT_INITIALIZED; }
  return step("restore", pid, arguments, 0, CHECKPOINTED, LOCKED);
}
API int cuCheckpointProcessUnlock(int pid, void *arguments) { return step("unlock", pid, arguments, 0, LOCKED, RUNNING); }
API int cuGetErrorName(int error, const char **name) {
  *name = error == INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE" : error == NOT_INITIALIZED ? "CUDA_ERROR_NOT_INITIALIZED"
        : error == ILLEGAL_STATE ? "CUDA_ERROR_ILLEGAL_STATE" : "CUDA_ERROR_NOT_SUPPORTED";
  return 0;
}
API int cuGetErrorString(int error, const char **text) { *text = "the fake driver's error"; return 0; }

// ---- the rest -------------------------------------------------------------------------------------------------------

API int cuDeviceGet(int *device, int index) { *device = index; return 0; }
API int cuDeviceGetCount(int *count) { *count = 1; return 0; }
API int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { if (flags) *flags = 0; if (active) *active = 1; return 0; }
API int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return 0; }
API int cuCtxGetCurrent(void **context) { *context = (void *)1; return 0; }
API int cuCtxSetCurrent(void *context) { return 0; }
API int cuModuleLoadData(void **module, const void *image) { *module = (void *)16; return 0; }
API int cuModuleGetFunction(void **function, void *module, const char *name) { *function = (void *)16; return 0; }
API int cuFuncGetAttribute(int *value, int which, void *function) { *value = which == 0 ? 1024 : which == 4 ? 32 : 0; return 0; }
API int cuDeviceGetAttribute(int *value, int which, int device) {
  switch (which) {  // CUdevice_attribute
    case 1: *value = 1024; break;            // threads of a block
    case 8: case 97: *value = 232448; break; // shared memory of a block
    case 10: *value = 32; break;             // warp
    case 12: case 82: *value = 65536; break; // registers
    case 13: *value = 1980000; break;        // clock, kHz
    case 16: *value = 132; break;            // multiprocessors
    case 36: *value = 2619000; break;        // memory clock, kHz
    case 37: *value = 5120; break;           // bus width
    case 39: *value = 2048; break;           // threads of a multiprocessor
    case 75: *value = 9; break;              // compute capability
    case 81: *value = 233472; break;         // shared memory of a multiprocessor
    default: *value = 0;
  }
  return 0;
}

#define NOTHING(name) API int name() { return 0; }
NOTHING(cuCtxGetLimit) NOTHING(cuCtxSetLimit) NOTHING(cuFuncSetAttribute) NOTHING(cuFuncSetCacheConfig)
NOTHING(cuModuleLoadDataEx) NOTHING(cuModuleLoad) NOTHING(cuModuleUnload) NOTHING(cuModuleGetGlobal_v2)
NOTHING(cuLaunchKernel) NOTHING(cuLaunchKernelEx) NOTHING(cuTensorMapEncodeTiled) NOTHING(cuTensorMapEncodeIm2col)
NOTHING(cuPointerGetAttribute) NOTHING(cuStreamSynchronize) NOTHING(cuCtxGetDevice)
NOTHING(cuOccupancyMaxActiveClusters) NOTHING(cuLinkCreate_v2) NOTHING(cuOccupancyMaxPotentialBlockSize)
NOTHING(cuFuncGetModule)

static int not_supported() { return NOT_SUPPORTED; }

API int cuGetProcAddress_v2(const char *name, void **found, int version, uint64_t flags, int *status) {
  static const char *versions[] = {"_v3", "_v2", ""};
  char with[128];
  Dl_info here;
  void *library = dladdr((void *)cuInit, &here) ? dlopen(here.dli_fname, RTLD_LAZY | RTLD_NOLOAD) : 0;
  *found = 0;
  for (int i = 0; library && !*found && i < 3; i++) {
    snprintf(with, sizeof with, "%s%s", name, versions[i]);
    *found = dlsym(library, with);
  }
  if (library) dlclose(library);
  if (!*found) *found = (void *)not_supported;
  if (status) *status = 0;
  return 0;
}
API int cuGetProcAddress(const char *name, void **found, int version, uint64_t flags) { return cuGetProcAddress_v2(name, found, version, flags, 0); }
