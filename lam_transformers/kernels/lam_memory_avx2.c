/* lam_memory.c for processors with AVX2 and FMA. */
#if defined(__x86_64__) && defined(__GNUC__)
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define LAM_SUFFIX _avx2
#define LANES 8
#include "lam_memory.c"
#include "lam_elementwise.c"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
