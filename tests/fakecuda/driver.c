// libcuda.so.1 that is none: the driver's checkpoint calls with their rules, and as much of the rest as torch, Triton and the
// Python bindings ask for before they do something. STUB_LOG names a log of the checkpoint calls.
//
// Rules that a real driver has too: a step from a wrong state is refused, a process without a context is unknown, reserved
// arguments have to be zero, and a restore needs cuInit in the process that asks for it (persistence mode off).
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <sys/mman.h>

#include "state.h"

#define API __attribute__((visibility("default")))
enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, ILLEGAL_STATE = 401, NOT_SUPPORTED = 801 };

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

// ---- memory, streams and events: for libraries that have a CUDA runtime of their own inside, which cannot be preloaded over -----

typedef unsigned long long address;

static void *pages(size_t size) {
  void *p = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? 0 : p;
}
static int allocate(address *p, size_t size) {  // its size is kept in a page before it
  char *start = pages(size + 4096);
  if (!start) return OUT_OF_MEMORY;
  *(size_t *)start = size + 4096;
  *p = (address)start + 4096;
  return 0;
}
static int release(address p) {
  if (p) munmap((char *)p - 4096, *(size_t *)((char *)p - 4096));
  return 0;
}
static int copy(address to, address from, size_t size) { memcpy((void *)to, (void *)from, size); return 0; }
static int handle(void **made) { *made = malloc(64); return 0; }

API int cuMemAlloc_v2(address *p, size_t size) { return allocate(p, size); }
API int cuMemFree_v2(address p) { return release(p); }
API int cuMemHostAlloc(void **p, size_t size, unsigned flags) { return allocate((address *)p, size); }
API int cuMemAllocHost_v2(void **p, size_t size) { return allocate((address *)p, size); }
API int cuMemFreeHost(void *p) { return release((address)p); }
API int cuMemHostRegister_v2(void *p, size_t size, unsigned flags) { return 0; }
API int cuMemHostUnregister(void *p) { return 0; }
API int cuMemHostGetDevicePointer_v2(address *device, void *host, unsigned flags) { *device = (address)host; return 0; }
API int cuMemGetInfo_v2(size_t *unused, size_t *total) {
  *total = 85000000000ull;
  *unused = *total - every_process(0, 0);
  return 0;
}
API int cuMemcpy(address to, address from, size_t size) { return copy(to, from, size); }
API int cuMemcpyAsync(address to, address from, size_t size, void *stream) { return copy(to, from, size); }
API int cuMemcpyHtoD_v2(address to, const void *from, size_t size) { return copy(to, (address)from, size); }
API int cuMemcpyHtoDAsync_v2(address to, const void *from, size_t size, void *stream) { return copy(to, (address)from, size); }
API int cuMemcpyDtoH_v2(void *to, address from, size_t size) { return copy((address)to, from, size); }
API int cuMemcpyDtoHAsync_v2(void *to, address from, size_t size, void *stream) { return copy((address)to, from, size); }
API int cuMemcpyDtoD_v2(address to, address from, size_t size) { return copy(to, from, size); }
API int cuMemcpyDtoDAsync_v2(address to, address from, size_t size, void *stream) { return copy(to, from, size); }
API int cuMemsetD8_v2(address p, unsigned char value, size_t size) { memset((void *)p, value, size); return 0; }
API int cuMemsetD8Async(address p, unsigned char value, size_t size, void *stream) { memset((void *)p, value, size); return 0; }
API int cuStreamCreate(void **stream, unsigned flags) { return handle(stream); }
API int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) { return handle(stream); }
API int cuStreamDestroy_v2(void *stream) { free(stream); return 0; }
API int cuStreamQuery(void *stream) { return 0; }
API int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return 0; }
API int cuStreamIsCapturing(void *stream, int *capturing) { *capturing = 0; return 0; }
API int cuEventCreate(void **event, unsigned flags) { return handle(event); }
API int cuEventRecord(void *event, void *stream) { return 0; }
API int cuEventRecordWithFlags(void *event, void *stream, unsigned flags) { return 0; }
API int cuEventQuery(void *event) { return 0; }
API int cuEventSynchronize(void *event) { return 0; }
API int cuEventDestroy_v2(void *event) { free(event); return 0; }
API int cuEventElapsedTime_v2(float *milliseconds, void *from, void *to) { *milliseconds = 1; return 0; }
API int cuLaunchHostFunc(void *stream, void (*function)(void *), void *with) { function(with); return 0; }
API int cuCtxSynchronize(void) { return 0; }
API int cuCtxPushCurrent_v2(void *context) { return 0; }
API int cuCtxPopCurrent_v2(void **context) { *context = (void *)1; return 0; }
API int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
API int cuDevicePrimaryCtxReset_v2(int device) { return 0; }
API int cuDeviceTotalMem_v2(size_t *size, int device) { *size = 85000000000ull; return 0; }
API int cuDeviceGetName(char *text, int room, int device) { snprintf(text, room, "FAKE H100 (no GPU)"); return 0; }

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
