/* A CUDA driver without a GPU: every call succeeds, but for the one that FAKE_CUDA_FAIL names
   ("cuLaunchKernel:2" fails with error 2). */
#include <stdlib.h>
#include <string.h>

static int result(const char* function) {
  const char* wanted = getenv("FAKE_CUDA_FAIL");
  const size_t length = strlen(function);
  if (wanted == NULL || strncmp(wanted, function, length) != 0 || wanted[length] != ':') return 0;
  return atoi(wanted + length + 1);
}

static int something;

int cuInit(unsigned flags) { (void)flags; return result("cuInit"); }
int cuDeviceGet(int* device, int index) { *device = index; return result("cuDeviceGet"); }
int cuDevicePrimaryCtxRetain(void** context, int device) {
  (void)device;
  *context = &something;
  return result("cuDevicePrimaryCtxRetain");
}
int cuCtxPushCurrent_v2(void* context) { (void)context; return result("cuCtxPushCurrent_v2"); }
int cuCtxPopCurrent_v2(void** context) { *context = &something; return 0; }
int cuModuleLoadData(void** module, const void* code) {
  *module = &something;
  return memcmp(code, "\177ELF", 4) ? 200 : result("cuModuleLoadData");
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  (void)module, (void)name;
  *function = &something;
  return result("cuModuleGetFunction");
}
int fake_carveout; /* what was last asked for */
int cuFuncSetAttribute(void* function, int attribute, int value) {
  (void)function;
  if (attribute == 9) {
    fake_carveout = value;
    return result("carveout");
  }
  return attribute == 8 ? result("cuFuncSetAttribute") : 1;
}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* function, int threads,
                                                size_t shared) {
  (void)function, (void)threads, (void)shared;
  *blocks = 3;
  return result("cuOccupancyMaxActiveBlocksPerMultiprocessor");
}
int cuLaunchKernel(void* function, unsigned bx, unsigned by, unsigned bz, unsigned tx, unsigned ty,
                   unsigned tz, unsigned shared, void* stream, void** arguments, void** extra) {
  (void)function, (void)bx, (void)by, (void)bz, (void)tx, (void)ty, (void)tz, (void)shared;
  (void)stream, (void)arguments, (void)extra;
  return result("cuLaunchKernel");
}
int cuGetErrorName(int code, const char** name) {
  *name = code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_OF_THE_TEST";
  return 0;
}
int cuGetErrorString(int code, const char** text) {
  *text = code == 2 ? "out of memory" : "what the test asked for";
  return 0;
}
