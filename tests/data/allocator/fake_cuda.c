/* A CUDA runtime without a GPU: enough of it for PyTorch's caching allocator to run on memory that is never touched.
 *
 * Preloaded, it stands before libcudart: cudaMalloc hands out ascending addresses until FAKE_CUDA_MEMORY bytes are
 * taken, and the virtual-memory functions of the driver (for expandable segments) count physical pages against the
 * same limit. Nothing can be computed with it. Written against the CUDA 12 and 13 runtime interfaces.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define OUT_OF_MEMORY 2
#define NOT_SUPPORTED 801
#define MAX_SEGMENTS (1 << 20)

static const uint64_t SEGMENTS = 0x100000000000, RANGES = 0x400000000000;
static uint64_t next_segment, next_range, used;
static struct { uint64_t address, size; } segments[MAX_SEGMENTS];
static size_t n_segments;
static uint64_t handle_sizes[MAX_SEGMENTS];
static size_t n_handles;

static uint64_t capacity(void) {
  const char *text = getenv("FAKE_CUDA_MEMORY");
  return text ? strtoull(text, NULL, 10) : (uint64_t)8 << 30;
}

static int take(uint64_t size) {
  if (used + size > capacity()) return OUT_OF_MEMORY;
  used += size;
  return 0;
}

int cudaMalloc(void **pointer, size_t size) {
  if (take(size)) return OUT_OF_MEMORY;
  const uint64_t page = 2 << 20;
  segments[n_segments].address = SEGMENTS + next_segment;
  segments[n_segments].size = size;
  *pointer = (void *)segments[n_segments++].address;
  next_segment += (size + page - 1) / page * page;
  return 0;
}

int cudaFree(void *pointer) {
  for (size_t i = n_segments; i-- > 0;)
    if (segments[i].address == (uint64_t)pointer && segments[i].size) {
      used -= segments[i].size;
      segments[i].size = 0;
      return 0;
    }
  return pointer ? 1 : 0;
}

int cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  *total = capacity();
  *free_bytes = *total - used;
  return 0;
}

/* The beginning of cudaDeviceProp, alike in CUDA 12 and 13. */
struct properties {
  char name[256], uuid[16], luid[8];
  unsigned luid_mask;
  size_t total, shared_per_block;
  int registers, warp;
  size_t pitch;
  int threads, threads_dim[3], grid[3];
  size_t constant;
  int major, minor;
};

int cudaGetDeviceProperties(struct properties *p, int device) {
  (void)device;
  strcpy(p->name, "Fake CUDA device");
  p->total = capacity();
  p->warp = 32;
  p->threads = 1024;
  p->major = 9;
  p->minor = 0;
  return 0;
}
int cudaGetDeviceProperties_v2(struct properties *p, int device) { return cudaGetDeviceProperties(p, device); }

int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaSetDevice(int device) { return device ? 101 : 0; }
int cudaDriverGetVersion(int *version) { *version = 13020; return 0; }
int cudaGetLastError(void) { return 0; }
int cudaPeekAtLastError(void) { return 0; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = *greatest = 0; return 0; }
int cudaDeviceSynchronize(void) { return 0; }
int cudaStreamSynchronize(void *stream) { (void)stream; return 0; }
int cudaStreamIsCapturing(void *stream, int *status) { (void)stream; *status = 0; return 0; }
int cudaThreadExchangeStreamCaptureMode(int *mode) { (void)mode; return 0; }
int cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
  static uintptr_t count = 0x1000;
  (void)flags, (void)priority;
  *stream = (void *)(count += 0x10);
  return 0;
}
int cudaEventCreateWithFlags(void **event, unsigned flags) { (void)flags; *event = malloc(1); return 0; }
int cudaEventDestroy(void *event) { free(event); return 0; }
int cudaEventRecord(void *event, void *stream) { (void)event, (void)stream; return 0; }
int cudaEventSynchronize(void *event) { (void)event; return 0; }
int fake_cuda_busy; /* work on other streams is not done yet */
int cudaEventQuery(void *event) { (void)event; return fake_cuda_busy ? 600 : 0; }

/* The driver's virtual memory. */
static int memAddressReserve(uint64_t *pointer, size_t size, size_t alignment, uint64_t hint, uint64_t flags) {
  (void)alignment, (void)hint, (void)flags;
  *pointer = RANGES + next_range;
  next_range += size + ((uint64_t)1 << 30);
  return 0;
}
static int memCreate(uint64_t *handle, size_t size, const void *properties, uint64_t flags) {
  (void)properties, (void)flags;
  if (take(size)) return OUT_OF_MEMORY;
  handle_sizes[n_handles] = size;
  *handle = ++n_handles;
  return 0;
}
static int memRelease(uint64_t handle) {
  used -= handle_sizes[handle - 1];
  return 0;
}
static int deviceGetAttribute(int *value) { *value = 0; return 0; }
static int granularity(size_t *value) { *value = 2 << 20; return 0; }
static int errorString(int error, const char **text) { (void)error; *text = "fake driver error"; return 0; }
static int succeed(void) { return 0; }
static int refuse(void) { return NOT_SUPPORTED; }

static const struct { const char *name; void *function; } driver[] = {
    {"cuMemAddressReserve", memAddressReserve}, {"cuMemCreate", memCreate}, {"cuMemRelease", memRelease},
    {"cuMemMap", succeed}, {"cuMemUnmap", succeed}, {"cuMemSetAccess", succeed}, {"cuMemAddressFree", succeed},
    {"cuDeviceGet", deviceGetAttribute}, {"cuDeviceGetAttribute", deviceGetAttribute},
    {"cuMemGetAllocationGranularity", granularity}, {"cuGetErrorString", errorString},
};

int cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, uint64_t flags, int *status) {
  (void)version, (void)flags;
  *function = (void *)refuse;
  for (size_t i = 0; i < sizeof driver / sizeof *driver; i++)
    if (!strcmp(name, driver[i].name)) *function = driver[i].function;
  if (status) *status = 0;
  return 0;
}
int cudaGetDriverEntryPoint(const char *name, void **function, uint64_t flags, int *status) {
  return cudaGetDriverEntryPointByVersion(name, function, 0, flags, status);
}

/* Found by name when this library stands in for libcuda.so.1. */
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
  (void)device;
  *flags = 0;
  *active = 1;
  return 0;
}
int cudaDeviceGetAttribute(int *value, int attribute, int device) { (void)attribute, (void)device; *value = 0; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13020; return 0; }
int cudaStreamGetCaptureInfo(void *stream, int *status) { (void)stream; *status = 0; return 0; }

/* Found by name when it stands in for libnvidia-ml.so.1: a device without fabric handles. */
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **device) { (void)bus; *device = NULL; return 0; }
int nvmlDeviceGetGpuFabricInfoV(void) { return 3; }
int nvmlDeviceGetComputeRunningProcesses(void) { return 3; }
int nvmlDeviceGetNvLinkRemoteDeviceType(void) { return 3; }
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void) { return 3; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13020; return 0; }
