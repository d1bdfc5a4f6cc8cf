/* A GPU that does nothing: kernels return at once, copies from it are zeros. Companion of fake_cuda.c.
 *
 * With both preloaded, a CUDA build of PyTorch trains without a GPU, and its allocator records what a step on a GPU of
 * compute capability NULL_GPU_CAPABILITY (80) with NULL_GPU_SMS (108) multiprocessors would ask for: ATen's own CUDA code
 * decides. What is missing: cuDNN, cuSOLVER and cuSPARSE (not stubbed), and cuBLASLt says that it needs no workspace.
 */
#include <driver_types.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static int setting(const char *name, int otherwise) {
  const char *text = getenv(name);
  return text ? atoi(text) : otherwise;
}
static int on_device(const void *pointer) {
  return (uint64_t)pointer >= 0x100000000000 && (uint64_t)pointer < 0x600000000000;
}

int null_gpu_properties(struct cudaDeviceProp *p, int device) {
  (void)device;
  memset(p, 0, sizeof *p);
  strcpy(p->name, "Null GPU");
  const char *memory = getenv("FAKE_CUDA_MEMORY");
  p->totalGlobalMem = memory ? strtoull(memory, NULL, 10) : (size_t)8 << 30;
  p->major = setting("NULL_GPU_CAPABILITY", 80) / 10;
  p->minor = setting("NULL_GPU_CAPABILITY", 80) % 10;
  p->multiProcessorCount = setting("NULL_GPU_SMS", 108);
  p->maxThreadsPerMultiProcessor = p->major == 8 && p->minor ? 1536 : p->major == 7 && p->minor ? 1024 : 2048;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 0x7fffffff;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->warpSize = p->maxBlocksPerMultiProcessor = 32;
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = p->minor ? 101376 : 166912;
  p->sharedMemPerMultiprocessor = p->sharedMemPerBlockOptin + 1024;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->l2CacheSize = 40 << 20;
  p->textureAlignment = 512;
  return 0;
}
__asm__(".globl cudaGetDeviceProperties\n.set cudaGetDeviceProperties, null_gpu_properties\n"
        ".globl cudaGetDeviceProperties_v2\n.set cudaGetDeviceProperties_v2, null_gpu_properties");

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
  struct cudaDeviceProp p;
  null_gpu_properties(&p, device);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
    case cudaDevAttrMaxGridDimX: *value = p.maxGridSize[0]; break;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *value = p.maxGridSize[1]; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = (int)p.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)p.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = (int)p.sharedMemPerMultiprocessor; break;
    case cudaDevAttrWarpSize: *value = p.warpSize; break;
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = p.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = p.maxBlocksPerMultiProcessor; break;
    case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; break;
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    default: *value = 0;
  }
  return 0;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function) {
  (void)function;
  memset(attributes, 0, sizeof *attributes);
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 32;
  attributes->binaryVersion = attributes->ptxVersion = setting("NULL_GPU_CAPABILITY", 80);
  return 0;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks) { *blocks = 2; return 0; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks) { *blocks = 2; return 0; }

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *pointer) {
  memset(attributes, 0, sizeof *attributes);
  attributes->type = on_device(pointer) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  attributes->devicePointer = (void *)pointer;
  return 0;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
  (void)kind;
  if (on_device(to)) return 0;
  if (on_device(from))
    memset(to, 0, size);
  else
    memcpy(to, from, size);
  return 0;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
  (void)stream;
  return cudaMemcpy(to, from, size, kind);
}
int cudaHostAlloc(void **pointer, size_t size) { *pointer = calloc(1, size); return 0; } /* what is read is 0 */
int cudaMallocHost(void **pointer, size_t size) { *pointer = calloc(1, size); return 0; }
int cudaFreeHost(void *pointer) { free(pointer); return 0; }
int cudaStreamGetPriority(void *stream, int *priority) { (void)stream; *priority = 0; return 0; }
int __cudaGetKernel(void **kernel, void *function) { *kernel = function; return 0; }

/* cuBLAS: a handle, a description, a heuristic that asks for no workspace. */
int cublasCreate_v2(void **handle) { *handle = malloc(1); return 0; }
int cublasDestroy_v2(void *handle) { free(handle); return 0; }
int cublasGetMathMode(void *handle, int *mode) { (void)handle; *mode = 0; return 0; }
int cublasGetPointerMode_v2(void *handle, int *mode) { (void)handle; *mode = 0; return 0; }
size_t cublasLtGetVersion(void) { return 130400; }
int cublasLtMatmulDescCreate(void **made) { *made = malloc(1); return 0; }
int cublasLtMatrixLayoutCreate(void **made) { *made = malloc(1); return 0; }
int cublasLtMatmulPreferenceCreate(void **made) { *made = malloc(1); return 0; }
int cublasLtMatmulDescDestroy(void *made) { free(made); return 0; }
int cublasLtMatrixLayoutDestroy(void *made) { free(made); return 0; }
int cublasLtMatmulPreferenceDestroy(void *made) { free(made); return 0; }
int cublasLtMatmulAlgoGetHeuristic(void *h, void *o, void *a, void *b, void *c, void *d, void *p, int asked,
                                   void *results, int *found) {
  (void)h, (void)o, (void)a, (void)b, (void)c, (void)d, (void)p, (void)asked;
  memset(results, 0, 96); /* sizeof(cublasLtMatmulHeuristicResult_t) */
  *found = 1;
  return 0;
}

#define SUCCEED(name) int name(void) { return 0; }
SUCCEED(__cudaLaunchKernel) SUCCEED(cudaLaunchKernel) SUCCEED(cudaLaunchKernelExC) SUCCEED(cudaMemset)
SUCCEED(cudaMemsetAsync) SUCCEED(cudaMemcpyToSymbol) SUCCEED(cudaMemcpyPeerAsync) SUCCEED(cudaFuncSetAttribute)
SUCCEED(cudaStreamWaitEvent) SUCCEED(cudaStreamQuery) SUCCEED(cudaEventRecordWithFlags)
SUCCEED(cublasSetStream_v2) SUCCEED(cublasSetWorkspace_v2) SUCCEED(cublasSetMathMode) SUCCEED(cublasSetPointerMode_v2)
SUCCEED(cublasSetSmCountTarget) SUCCEED(cublasGemmEx) SUCCEED(cublasSgemmEx) SUCCEED(cublasSgemm_v2)
SUCCEED(cublasDgemm_v2) SUCCEED(cublasGemmStridedBatchedEx) SUCCEED(cublasSgemmStridedBatched)
SUCCEED(cublasDgemmStridedBatched) SUCCEED(cublasSgemv_v2) SUCCEED(cublasDgemv_v2) SUCCEED(cublasSdot_v2)
SUCCEED(cublasDdot_v2) SUCCEED(cublasDotEx) SUCCEED(cublasLtMatmul) SUCCEED(cublasLtMatmulDescSetAttribute)
SUCCEED(cublasLtMatrixLayoutSetAttribute) SUCCEED(cublasLtMatmulPreferenceSetAttribute)
