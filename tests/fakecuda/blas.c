// cuBLAS and cuBLASLt that are none: products are counted, handles are memory, everything else succeeds. Part of libfakecuda.so.
#include <stddef.h>
#include <stdlib.h>

extern void fake_gemm(const char *name);
#define API __attribute__((visibility("default")))
#define COUNTED(name) API int name() { fake_gemm(#name); return 0; }
#define NOTHING(name) API int name() { return 0; }

COUNTED(cublasCgemmStridedBatched) COUNTED(cublasCgemm_v2) COUNTED(cublasCgemv_v2) COUNTED(cublasDgemmStridedBatched)
COUNTED(cublasDgemm_v2) COUNTED(cublasDgemv_v2) COUNTED(cublasGemmEx) COUNTED(cublasGemmStridedBatchedEx)
COUNTED(cublasLtMatmul) COUNTED(cublasSgemmEx) COUNTED(cublasSgemmStridedBatched) COUNTED(cublasSgemm_v2)
COUNTED(cublasSgemv_v2) COUNTED(cublasZgemmStridedBatched) COUNTED(cublasZgemm_v2) COUNTED(cublasZgemv_v2)

NOTHING(cublasCdotc_v2) NOTHING(cublasCdotu_v2) NOTHING(cublasCgelsBatched) NOTHING(cublasCgeqrfBatched)
NOTHING(cublasCgetrfBatched) NOTHING(cublasCgetrsBatched) NOTHING(cublasCtrsmBatched) NOTHING(cublasCtrsm_v2)
NOTHING(cublasDdot_v2) NOTHING(cublasDestroy_v2) NOTHING(cublasDgelsBatched) NOTHING(cublasDgeqrfBatched)
NOTHING(cublasDgetrfBatched) NOTHING(cublasDgetrsBatched) NOTHING(cublasDotEx) NOTHING(cublasDtrsmBatched)
NOTHING(cublasDtrsm_v2) NOTHING(cublasLtGetVersion) NOTHING(cublasLtMatmulDescDestroy)
NOTHING(cublasLtMatmulDescSetAttribute) NOTHING(cublasLtMatmulPreferenceDestroy)
NOTHING(cublasLtMatmulPreferenceSetAttribute) NOTHING(cublasLtMatrixLayoutDestroy)
NOTHING(cublasLtMatrixLayoutSetAttribute) NOTHING(cublasSdot_v2) NOTHING(cublasSetMathMode)
NOTHING(cublasSetPointerMode_v2) NOTHING(cublasSetStream_v2) NOTHING(cublasSetWorkspace_v2)
NOTHING(cublasSgelsBatched) NOTHING(cublasSgeqrfBatched) NOTHING(cublasSgetrfBatched) NOTHING(cublasSgetrsBatched)
NOTHING(cublasStrsmBatched) NOTHING(cublasStrsm_v2) NOTHING(cublasZdotc_v2) NOTHING(cublasZdotu_v2)
NOTHING(cublasZgelsBatched) NOTHING(cublasZgeqrfBatched) NOTHING(cublasZgetrfBatched) NOTHING(cublasZgetrsBatched)
NOTHING(cublasZtrsmBatched) NOTHING(cublasZtrsm_v2)

static int handle(void **made) { *made = malloc(64); return 0; }
API int cublasCreate_v2(void **made) { return handle(made); }
API int cublasLtMatmulDescCreate(void **made, int compute, int scale) { return handle(made); }
API int cublasLtMatmulPreferenceCreate(void **made) { return handle(made); }
API int cublasLtMatrixLayoutCreate(void **made, int type, unsigned long rows, unsigned long columns, long stride) { return handle(made); }
API int cublasGetMathMode(void *of, int *mode) { *mode = 0; return 0; }
API int cublasGetPointerMode_v2(void *of, int *mode) { *mode = 0; return 0; }
API int cublasLtMatmulAlgoGetHeuristic(void *of, void *operation, void *a, void *b, void *c, void *d, void *preference, int asked, void *results, int *found) {
  *found = 1;
  return 0;
}
