// A CUDA runtime that is none, to be preloaded into a process with the CUDA build of torch: device memory is host memory, copies
// are real, kernels do nothing, and what a stream capture forbids is an error, as it is on a device.
//
// What a kernel would have computed comes back as zeros (`SMALL`): tokens, sums and comparisons are then the same every time, and
// mean nothing. FAKECUDA_LOG names a log; with FAKECUDA_KERNELS every kernel is in it.
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "state.h"

#define API __attribute__((visibility("default")))
#define TOTAL_BYTES 85000000000ull
#define CONTEXT_BYTES (500ull << 20)
#define SMALL 64  // bytes: a copy to the host of at most so much is an answer that a kernel computed

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static __thread cudaError_t last;

// ---- log ------------------------------------------------------------------------------------------------------------

static long launches, gemms, pinned_bytes, allocations, to_device_bytes, to_host_bytes;

static FILE *log_file(void) {
  static FILE *file;
  const char *path = file ? 0 : getenv("FAKECUDA_LOG");
  if (path && (file = fopen(path, "ae"))) setvbuf(file, 0, _IOLBF, 0);
  return file;
}
#define LOG(...) do { FILE *f_ = log_file(); if (f_) fprintf(f_, __VA_ARGS__); } while (0)

__attribute__((destructor)) static void at_end(void) {
  if (launches)
    LOG("launches %ld, gemms %ld, to device %ld, to host %ld, pinned %ld bytes, allocations %ld\n", launches, gemms, to_device_bytes, to_host_bytes, pinned_bytes, allocations);
}

// ---- the context: known to the driver and to NVML from the first allocation on ------------------------------------------

static unsigned long long used_bytes;  // by this process, on the device

static void tell(void) {  // under the mutex
  struct process p = {RUNNING, used_bytes + CONTEXT_BYTES, start_time(getpid()), 0}, before;
  if (read_process(getpid(), &before)) { p.state = before.state; p.was_parked = before.was_parked; }
  write_process(getpid(), &p);
}

// ---- capture --------------------------------------------------------------------------------------------------------

static volatile int capturing;
static cudaStream_t captured_stream;
static unsigned long long captures;
static __thread int relaxed;

static cudaError_t forbidden(const char *what) {
  LOG("a capture forbids %s\n", what);
  return last = cudaErrorStreamCaptureUnsupported;
}
#define NOT_IN_CAPTURE(what) do { if (capturing && !relaxed) return forbidden(what); } while (0)

API cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  if (!stream) return last = cudaErrorStreamCaptureImplicit;
  capturing = 1, captured_stream = stream, captures++;
  LOG("capture begins after %ld launches\n", launches);
  return 0;
}
API cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  LOG("capture ends after %ld launches, %ld gemms\n", launches, gemms);
  capturing = 0;
  *graph = malloc(64);
  return 0;
}
API cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  *status = capturing && stream == captured_stream ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return 0;
}
API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *graph,
                                         const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges, size_t *count) {
  if (id) *id = captures;
  if (graph) *graph = 0;
  if (count) *count = 0;
  return cudaStreamIsCapturing(stream, status);
}
API cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
  int before = relaxed;
  relaxed = *mode == cudaStreamCaptureModeRelaxed;
  *mode = before ? cudaStreamCaptureModeRelaxed : cudaStreamCaptureModeGlobal;
  return 0;
}
API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long flags) { *made = malloc(64); return 0; }
API cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) { *count = 1; return 0; }
API cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) { LOG("replay\n"); return 0; }
API cudaError_t cudaGraphDestroy(cudaGraph_t graph) { free(graph); return 0; }
API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { free(graph); return 0; }

// ---- kernels: registered by the libraries, launched, and nothing happens ------------------------------------------------

struct kernel { const void *host; const char *name; };
static struct kernel *kernels;
static int kernel_count, kernel_room;

static const char *kernel_name(const void *host) {
  for (int i = kernel_count - 1; i >= 0; i--) if (kernels[i].host == host) return kernels[i].name;
  return "?";
}
static cudaError_t launched(const void *kernel) {
  __sync_fetch_and_add(&launches, 1);
  if (getenv("FAKECUDA_KERNELS")) LOG("kernel %s\n", kernel_name(kernel));
  return 0;
}
API void fake_gemm(const char *name) {
  __sync_fetch_and_add(&gemms, 1);
  if (getenv("FAKECUDA_KERNELS")) LOG("gemm %s\n", name);
}

API void **__cudaRegisterFatBinary(void *binary) { static void *handle[4]; return handle; }
API void __cudaRegisterFatBinaryEnd(void **handle) {}
API void __cudaUnregisterFatBinary(void **handle) {}
API void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int ext, size_t size, int constant, int global) {}
API char __cudaInitModule(void **handle) { return 1; }
API void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name, int limit, void *tid, void *bid, void *bdim, void *gdim, int *warp) {
  pthread_mutex_lock(&mutex);
  if (kernel_count == kernel_room) kernels = realloc(kernels, (kernel_room = kernel_room ? kernel_room * 2 : 65536) * sizeof *kernels);
  kernels[kernel_count++] = (struct kernel){host, name};
  pthread_mutex_unlock(&mutex);
}

static __thread struct { dim3 grid, block; size_t shared; void *stream; } configuration;
API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
  configuration.grid = grid, configuration.block = block, configuration.shared = shared, configuration.stream = stream;
  return 0;
}
API cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  *grid = configuration.grid, *block = configuration.block, *shared = configuration.shared, *(void **)stream = configuration.stream;
  return 0;
}
API cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *host) { *kernel = (cudaKernel_t)host; return 0; }
API cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) { return launched(kernel); }
API cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) { return launched(kernel); }
API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *how, const void *kernel, void **arguments) { return launched(kernel); }
API cudaError_t cudaLaunchHostFunc(cudaStream_t stream, void (*function)(void *), void *with) { function(with); return 0; }
API cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *kernel) {
  memset(found, 0, sizeof *found);
  found->maxThreadsPerBlock = 1024, found->numRegs = 32, found->binaryVersion = found->ptxVersion = 90;
  return 0;
}
API cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute which, int value) { return 0; }
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *count, const void *kernel, int block, size_t shared) { *count = 2; return 0; }
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *count, const void *kernel, int block, size_t shared, unsigned flags) { *count = 2; return 0; }

// ---- the device -----------------------------------------------------------------------------------------------------

API cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return 0; }
API cudaError_t cudaGetDevice(int *device) { *device = 0; return 0; }
API cudaError_t cudaSetDevice(int device) { return device ? (last = cudaErrorInvalidDevice) : 0; }
API cudaError_t cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
API cudaError_t cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
API cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "FAKE H100 (no GPU)");
  p->major = 9, p->totalGlobalMem = TOTAL_BYTES, p->multiProcessorCount = 132;
  p->sharedMemPerBlock = 49152, p->sharedMemPerBlockOptin = 232448, p->sharedMemPerMultiprocessor = 233472;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536, p->warpSize = 32;
  p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = 2048, p->maxBlocksPerMultiProcessor = 32;
  for (int i = 0; i < 3; i++) p->maxThreadsDim[i] = i < 2 ? 1024 : 64, p->maxGridSize[i] = i ? 65535 : 2147483647;
  p->l2CacheSize = 52428800, p->memoryBusWidth = 5120, p->totalConstMem = 65536, p->textureAlignment = 512;
  p->unifiedAddressing = p->concurrentKernels = p->canMapHostMemory = p->pciBusID = 1, p->asyncEngineCount = 3;
  return 0;
}
API cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr which, int device) {
  switch (which) {
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    default: *value = 0;
  }
  return 0;
}
API cudaError_t cudaDeviceGetPCIBusId(char *id, int room, int device) { snprintf(id, room, "0000:01:00.0"); return 0; }
API cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0, *greatest = -5; return 0; }
API cudaError_t cudaDeviceCanAccessPeer(int *can, int a, int b) { *can = 0; return 0; }
API cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device) { *pool = malloc(8); return 0; }
API cudaError_t cudaDeviceSynchronize(void) { NOT_IN_CAPTURE("cudaDeviceSynchronize"); return 0; }
API cudaError_t cudaMemGetInfo(size_t *unused, size_t *total) {
  unsigned long long taken = every_process(0, 0);
  *total = TOTAL_BYTES;
  *unused = TOTAL_BYTES - (taken < TOTAL_BYTES ? taken : TOTAL_BYTES);
  return 0;
}
API cudaError_t cudaGetLastError(void) { cudaError_t error = last; last = 0; return error; }
API cudaError_t cudaPeekAtLastError(void) { return last; }
API const char *cudaGetErrorName(cudaError_t error) { return "cudaErrorFake"; }
API const char *cudaGetErrorString(cudaError_t error) {
  static __thread char text[64];
  snprintf(text, sizeof text, "fake CUDA error %d", error);
  return text;
}
API cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **found, unsigned version, unsigned long long flags, enum cudaDriverEntryPointQueryResult *result) {
  *found = 0;
  if (result) *result = cudaDriverEntryPointSymbolNotFound;
  return 0;
}

// ---- memory ---------------------------------------------------------------------------------------------------------

enum place { HOST, DEVICE, MAPPED };  // MAPPED: another process's, over IPC
struct range { char *start; size_t size; enum place place; struct range *next; };
static struct range *ranges;

static void add(void *start, size_t size, enum place place) {
  struct range *made = malloc(sizeof *made);
  *made = (struct range){start, size, place, 0};
  pthread_mutex_lock(&mutex);
  made->next = ranges, ranges = made;
  if (place == DEVICE) used_bytes += size, tell();
  pthread_mutex_unlock(&mutex);
}
static size_t drop(void *start) {
  size_t size = 0;
  pthread_mutex_lock(&mutex);
  for (struct range **at = &ranges; *at; at = &(*at)->next)
    if ((*at)->start == start) {
      struct range *gone = *at;
      size = gone->size, *at = gone->next;
      if (gone->place == DEVICE) used_bytes -= size, tell();
      free(gone);
      break;
    }
  pthread_mutex_unlock(&mutex);
  return size;
}
static int find(const void *p, struct range *found) {
  int there = 0;
  pthread_mutex_lock(&mutex);
  for (struct range *r = ranges; r && !there; r = r->next)
    if ((char *)p >= r->start && (char *)p < r->start + r->size) *found = *r, there = 1;
  pthread_mutex_unlock(&mutex);
  return there;
}
static void *pages(size_t size) {
  void *p = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? 0 : p;
}
static cudaError_t allocate(void **p, size_t size, enum place place) {
  size = (size + 4095) & ~4095ull;
  if (!(*p = pages(size ? size : 4096))) return last = cudaErrorMemoryAllocation;
  add(*p, size ? size : 4096, place);
  return 0;
}

API cudaError_t cudaMalloc(void **p, size_t size) {
  NOT_IN_CAPTURE("cudaMalloc");
  allocations++;
  return allocate(p, size, DEVICE);
}
API cudaError_t cudaMallocAsync(void **p, size_t size, cudaStream_t stream) { return cudaMalloc(p, size); }
API cudaError_t cudaFree(void *p) {
  size_t size = p ? drop(p) : 0;
  if (size) munmap(p, size);
  if (!p) { pthread_mutex_lock(&mutex); tell(); pthread_mutex_unlock(&mutex); }  // cudaFree(0): the usual way to ask for a context
  return 0;
}
API cudaError_t cudaFreeAsync(void *p, cudaStream_t stream) { return cudaFree(p); }
API cudaError_t cudaHostAlloc(void **p, size_t size, unsigned flags) {
  NOT_IN_CAPTURE("cudaHostAlloc");
  pinned_bytes += size;
  LOG("pinned %zu\n", size);
  return allocate(p, size, HOST);
}
API cudaError_t cudaMallocHost(void **p, size_t size) { return cudaHostAlloc(p, size, 0); }
API cudaError_t cudaFreeHost(void *p) { return cudaFree(p); }
API cudaError_t cudaHostRegister(void *p, size_t size, unsigned flags) {
  struct range there;
  if (find(p, &there)) return last = cudaErrorHostMemoryAlreadyRegistered;
  LOG("registered %zu, %s\n", size, (uintptr_t)p & 4095 ? "not at a page" : "at a page");
  add(p, size, HOST);
  return 0;
}
API cudaError_t cudaHostUnregister(void *p) { return drop(p) ? 0 : (last = cudaErrorHostMemoryNotRegistered); }
API cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned flags) { *device = host; return 0; }
API cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *p) {
  struct range r;
  memset(found, 0, sizeof *found);
  found->type = !find(p, &r) ? cudaMemoryTypeUnregistered : r.place == HOST ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
  found->devicePointer = found->hostPointer = (void *)p;
  return 0;
}
API cudaError_t cudaGetSymbolAddress(void **p, const void *symbol) { return cudaMalloc(p, 1 << 20); }

static cudaError_t copy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, int waits) {
  struct range r;
  if (kind == cudaMemcpyDefault) kind = find(to, &r) && r.place != HOST ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost;
  if (kind == cudaMemcpyHostToDevice) {
    __sync_fetch_and_add(&to_device_bytes, size);
    if (!find(from, &r)) LOG("to device, pageable: %zu\n", size);
  } else if (kind == cudaMemcpyDeviceToHost) __sync_fetch_and_add(&to_host_bytes, size);
  if (capturing && waits) return forbidden("a copy that waits");
  if (capturing) return 0;
  if (kind == cudaMemcpyDeviceToHost && size <= SMALL) memset(to, 0, size);
  else memcpy(to, from, size);
  return 0;
}
API cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) { return copy(to, from, size, kind, 1); }
API cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) { return copy(to, from, size, kind, 0); }
API cudaError_t cudaMemcpyToSymbol(const void *symbol, const void *from, size_t size, size_t offset, enum cudaMemcpyKind kind) { return 0; }
API cudaError_t cudaMemset(void *p, int value, size_t size) { memset(p, value, size); return 0; }
API cudaError_t cudaMemsetAsync(void *p, int value, size_t size, cudaStream_t stream) { if (!capturing) memset(p, value, size); return 0; }

// ---- memory of another process: a copy of it, taken when it is opened ---------------------------------------------------

struct shared { int pid; char *start; size_t size; };  // inside of cudaIpcMemHandle_t, 64 bytes

API cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *handle, void *p) {
  struct range r;
  if (!find(p, &r) || r.place != DEVICE) return last = cudaErrorInvalidValue;
  struct shared s = {getpid(), r.start, r.size};
  memset(handle, 0, sizeof *handle);
  memcpy(handle, &s, sizeof s);
  return 0;
}
API cudaError_t cudaIpcOpenMemHandle(void **p, cudaIpcMemHandle_t handle, unsigned flags) {
  struct shared s;
  memcpy(&s, &handle, sizeof s);
  if (s.pid == getpid()) return last = cudaErrorDeviceUninitialized;  // as on a device: not within the process that made it
  if (!(*p = pages(s.size))) return last = cudaErrorMemoryAllocation;
  for (size_t done = 0; done < s.size;) {
    struct iovec here = {(char *)*p + done, s.size - done}, there = {s.start + done, s.size - done};
    ssize_t moved = process_vm_readv(s.pid, &here, 1, &there, 1, 0);
    if (moved <= 0) { munmap(*p, s.size); return last = cudaErrorMapBufferObjectFailed; }
    done += moved;
  }
  add(*p, s.size, MAPPED);
  return 0;
}
API cudaError_t cudaIpcCloseMemHandle(void *p) { size_t size = drop(p); if (size) munmap(p, size); return 0; }
API cudaError_t cudaIpcGetEventHandle(cudaIpcEventHandle_t *handle, cudaEvent_t event) { memset(handle, 0, sizeof *handle); return 0; }
API cudaError_t cudaIpcOpenEventHandle(cudaEvent_t *event, cudaIpcEventHandle_t handle) { *event = malloc(64); return 0; }

// ---- streams and events: everything is done when it is asked for ----------------------------------------------------------

API cudaError_t cudaStreamCreate(cudaStream_t *stream) { *stream = malloc(64); return 0; }
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { *stream = malloc(64); return 0; }
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) { *stream = malloc(64); return 0; }
API cudaError_t cudaStreamDestroy(cudaStream_t stream) { free(stream); return 0; }
API cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) { *priority = 0; return 0; }
API cudaError_t cudaStreamSynchronize(cudaStream_t stream) { NOT_IN_CAPTURE("cudaStreamSynchronize"); return 0; }
API cudaError_t cudaStreamQuery(cudaStream_t stream) { NOT_IN_CAPTURE("cudaStreamQuery"); return 0; }
API cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) { return 0; }
API cudaError_t cudaEventCreate(cudaEvent_t *event) { *event = malloc(64); return 0; }
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { *event = malloc(64); return 0; }
API cudaError_t cudaEventDestroy(cudaEvent_t event) { free(event); return 0; }
API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { return 0; }
API cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) { return 0; }
API cudaError_t cudaEventQuery(cudaEvent_t event) { NOT_IN_CAPTURE("cudaEventQuery"); return 0; }
API cudaError_t cudaEventSynchronize(cudaEvent_t event) { NOT_IN_CAPTURE("cudaEventSynchronize"); return 0; }
API cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to) { *milliseconds = 1; return 0; }
