// What the three libraries know of each other's processes: a file for each process that has a context, in FAKECUDA_DIR.
//
//     FAKECUDA_DIR/PID   "state device_bytes start_time was_parked"
//
// No descriptor stays open and nothing is mapped, so CRIU meets none of it. A process that CRIU restored is found by its other
// start time: it comes back as it was dumped, parked.
#pragma once
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef FAKECUDA_DIR
#define FAKECUDA_DIR "/tmp/fakecuda"
#endif

enum { RUNNING, LOCKED, CHECKPOINTED, FAILED };  // CUprocessState of cuda.h

struct process {
  int state;
  unsigned long long device_bytes, start_time;
  int was_parked;
};

static inline unsigned long long start_time(int pid) {
  char path[64], text[1024];
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  ssize_t length = read(file, text, sizeof text - 1);
  close(file);
  text[length < 0 ? 0 : length] = 0;
  char *at = strrchr(text, ')');
  for (int field = 2; at && field < 22; field++) at = strchr(at + 1, ' ');
  return at ? strtoull(at + 1, 0, 10) : 0;
}

static inline void write_process(int pid, const struct process *p) {
  char path[256], text[128];
  mkdir(FAKECUDA_DIR, 0777);
  snprintf(path, sizeof path, FAKECUDA_DIR "/%d", pid);
  int length = snprintf(text, sizeof text, "%d %llu %llu %d\n", p->state, p->device_bytes, p->start_time, p->was_parked);
  int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (file < 0) return;
  if (write(file, text, length) != length) unlink(path);
  close(file);
}

// 0 where no such process lives or it has no context.
static inline int read_process(int pid, struct process *p) {
  char path[256], text[128];
  snprintf(path, sizeof path, FAKECUDA_DIR "/%d", pid);
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  ssize_t length = read(file, text, sizeof text - 1);
  close(file);
  text[length < 0 ? 0 : length] = 0;
  if (sscanf(text, "%d %llu %llu %d", &p->state, &p->device_bytes, &p->start_time, &p->was_parked) != 4) return 0;
  unsigned long long now = start_time(pid);
  if (!now) return 0;
  if (now != p->start_time) {
    if (!p->was_parked) return 0;  // another process, of the same number
    p->state = CHECKPOINTED;
    p->start_time = now;
    write_process(pid, p);
  }
  return 1;
}

static inline unsigned long long on_device_bytes(const struct process *p) {
  return p->state == CHECKPOINTED ? 0 : p->device_bytes;
}

// Every living process with a context; calls `each` with its number. Returns the sum of what they hold on the device.
static inline unsigned long long every_process(void (*each)(int pid, const struct process *p, void *with), void *with) {
  unsigned long long sum = 0;
  DIR *folder = opendir(FAKECUDA_DIR);
  if (!folder) return 0;
  for (struct dirent *entry; (entry = readdir(folder));) {
    struct process p;
    int pid = atoi(entry->d_name);
    if (pid <= 0 || !read_process(pid, &p)) continue;
    sum += on_device_bytes(&p);
    if (each && p.state != CHECKPOINTED) each(pid, &p, with);
  }
  closedir(folder);
  return sum;
}
