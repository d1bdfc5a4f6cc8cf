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

/* Not static: copies of this library that stand in for the driver's then share the state of the preloaded one. */
struct {
  uint64_t next_segment, next_range, used;
  size_t n_segments, n_handles;
  struct { uint64_t address, size; } segments[MAX_SEGMENTS];
  uint64_t handle_sizes[MAX_SEGMENTS];
} fake_cuda;

static uint64_t capacity(void) {
  const char *text = getenv("FAKE_CUDA_MEMORY");
  return text ? strtoull(text, NULL, 10) : (uint64_t)8 << 30;
}

static int take(uint64_t size) {
  if (fake_cuda.used + size > capacity()) return OUT_OF_MEMORY;
  fake_cuda.used += size;
  return 0;
}

int cudaMalloc(void **pointer, size_t size) {
  if (take(size)) return OUT_OF_MEMORY;
  const uint64_t page = 2 << 20;
  fake_cuda.segments[fake_cuda.n_segments].address = SEGMENTS + fake_cuda.next_segment;
  fake_cuda.segments[fake_cuda.n_segments].size = size;
  *pointer = (void *)fake_cuda.segments[fake_cuda.n_segments++].address;
  fake_cuda.next_segment += (size + page - 1) / page * page;
  return 0;
}

int cudaFree(void *pointer) {
  for (size_t i = fake_cuda.n_segments; i-- > 0;)
    if (fake_cuda.segments[i].address == (uint64_t)pointer && fake_cuda.segments[i].size) {
      fake_cuda.used -= fake_cuda.segments[i].size;
      fake_cuda.segments[i].size = 0;
      return 0;
    }
  return pointer ? 1 : 0;
}

int cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  *total = capacity();
  *free_bytes = *total - fake_cuda.used;
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

/* The driver's virtual memory; found by name or by cudaGetDriverEntryPoint, as the version wants. */
int cuMemAddressReserve(uint64_t *pointer, size_t size, size_t alignment, uint64_t hint, uint64_t flags) {
  (void)alignment, (void)hint, (void)flags;
  *pointer = RANGES + fake_cuda.next_range;
  fake_cuda.next_range += size + ((uint64_t)1 << 30);
  return 0;
}
int cuMemCreate(uint64_t *handle, size_t size, const void *properties, uint64_t flags) {
  (void)properties, (void)flags;
  if (take(size)) return OUT_OF_MEMORY;
  fake_cuda.handle_sizes[fake_cuda.n_handles] = size;
  *handle = ++fake_cuda.n_handles;
  return 0;
}
int cuMemRelease(uint64_t handle) {
  fake_cuda.used -= fake_cuda.handle_sizes[handle - 1];
  return 0;
}
int cuDeviceGet(int *device) { *device = 0; return 0; }
int cuDeviceGetAttribute(int *value) { *value = 0; return 0; }
int cuMemGetAllocationGranularity(size_t *value) { *value = 2 << 20; return 0; }
int cuGetErrorString(int error, const char **text) { (void)error; *text = "fake driver error"; return 0; }
int cuMemMap(void) { return 0; }
int cuMemUnmap(void) { return 0; }
int cuMemSetAccess(void) { return 0; }
int cuMemAddressFree(void) { return 0; }
int cuMemExportToShareableHandle(void) { return NOT_SUPPORTED; }
int cuMemImportFromShareableHandle(void) { return NOT_SUPPORTED; }
int cuMemsetD32Async(void) { return NOT_SUPPORTED; }
int cuMemGetAddressRange(void) { return NOT_SUPPORTED; }
int cuMemRetainAllocationHandle(void) { return NOT_SUPPORTED; }
int cuStreamWriteValue32(void) { return NOT_SUPPORTED; }
int cuMulticastAddDevice(void) { return NOT_SUPPORTED; }
int cuMulticastBindMem(void) { return NOT_SUPPORTED; }
int cuMulticastCreate(void) { return NOT_SUPPORTED; }
int cuMulticastUnbind(void) { return NOT_SUPPORTED; }

static const struct { const char *name; void *function; } driver[] = {
    {"cuMemAddressReserve", cuMemAddressReserve}, {"cuMemCreate", cuMemCreate}, {"cuMemRelease", cuMemRelease},
    {"cuMemMap", cuMemMap}, {"cuMemUnmap", cuMemUnmap}, {"cuMemSetAccess", cuMemSetAccess},
    {"cuMemAddressFree", cuMemAddressFree}, {"cuDeviceGet", cuDeviceGet},
    {"cuDeviceGetAttribute", cuDeviceGetAttribute}, {"cuGetErrorString", cuGetErrorString},
    {"cuMemGetAllocationGranularity", cuMemGetAllocationGranularity},
};

int cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, uint64_t flags, int *status) {
  (void)version, (void)flags;
  *function = (void *)cuMulticastCreate; /* any that is refused */
  for (size_t i = 0; i < sizeof driver / sizeof *driver; i++)
    if (!strcmp(name, driver[i].name)) *function = driver[i].function;
  if (status) *status = 0;
  return 0;
}
int cudaGetDriverEntryPoint(const char *name, void **function, uint64_t flags, int *status) {
  return cudaGetDriverEntryPointByVersion(name, function, 0, flags, status);
}

/* Found by name when this library stands in for libcuda.so.1, before any memory is asked for. */
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
int nvmlDeviceGetComputeRunningProcesses(void *device, unsigned *count) { (void)device; *count = 0; return 0; }
int nvmlDeviceGetNvLinkRemoteDeviceType(void) { return 3; }
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void) { return 3; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13020; return 0; }

#ifdef NULL_GPU /* found by name, too, once kernels are launched */
int cuCtxGetCurrent(void **context) { *context = (void *)1; return 0; }
#endif
