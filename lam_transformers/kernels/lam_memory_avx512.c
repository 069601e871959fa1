/* lam_memory.c for processors with AVX-512. */
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,prefer-vector-width=512")
#endif
#define LAM_SUFFIX _avx512
#define LANES 16
#include "lam_memory.c"
#include "lam_elementwise.c"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
