/* lam_memory.c for any processor, and which variants this one can run. */
#define LAM_SUFFIX _plain
#include "lam_memory.c"
#include "lam_elementwise.c"

/* The number of this interface: structures and signatures. native.py has the same and refuses a library with another. */
int64_t lam_abi(void) { return 3; }

/* Bits: 1 avx512, 2 avx2, 4 plain. */
int64_t lam_supported(void) {
    int64_t known = 4;
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) known |= 2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw"))
        known |= 1;
#endif
    return known;
}
