// libnvidia-ml.so.1 that is none: one device, and what the processes of the fake runtime hold of it.
#include "state.h"

#define API __attribute__((visibility("default")))
#define TOTAL_BYTES 85000000000ull
enum { NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7 };

struct running { unsigned pid; unsigned long long used_bytes; unsigned gpu_instance, compute_instance; };  // nvmlProcessInfo_t

API int nvmlInit_v2(void) { return 0; }
API int nvmlInitWithFlags(unsigned flags) { return 0; }
API int nvmlShutdown(void) { return 0; }
API const char *nvmlErrorString(int error) { return error == NOT_SUPPORTED ? "Not Supported" : "the fake NVML's error"; }
API int nvmlSystemGetDriverVersion(char *text, unsigned room) { snprintf(text, room, "580.159.04"); return 0; }
API int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return 0; }
API int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)1; return 0; }
API int nvmlDeviceGetName(void *device, char *text, unsigned room) { snprintf(text, room, "FAKE H100 (no GPU)"); return 0; }
API int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) { *major = 9, *minor = 0; return 0; }
API int nvmlDeviceGetMaxPcieLinkGeneration(void *device, unsigned *value) { *value = 5; return 0; }
API int nvmlDeviceGetMaxPcieLinkWidth(void *device, unsigned *value) { *value = 16; return 0; }
API int nvmlDeviceGetMigMode(void *device, unsigned *now, unsigned *next) { return NOT_SUPPORTED; }
API int nvmlDeviceGetPersistenceMode(void *device, unsigned *value) { *value = 0; return 0; }
API int nvmlDeviceGetUtilizationRates(void *device, unsigned *value) { value[0] = value[1] = 0; return 0; }
API int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *total_free_used) {
  unsigned long long used = every_process(0, 0);
  total_free_used[0] = TOTAL_BYTES, total_free_used[1] = TOTAL_BYTES - used, total_free_used[2] = used;
  return 0;
}

struct list { struct running *at; unsigned room, count; };
static void append(int pid, const struct process *p, void *with) {
  struct list *list = with;
  if (list->at && list->count < list->room) list->at[list->count] = (struct running){pid, p->device_bytes, 0xffffffff, 0xffffffff};
  list->count++;
}
API int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, struct running *found) {
  struct list list = {found, *count, 0};
  every_process(append, &list);
  int fits = list.count <= *count;
  *count = list.count;
  return fits ? 0 : INSUFFICIENT_SIZE;
}
