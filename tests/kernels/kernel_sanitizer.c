/* The native kernel over the sizes of the tests, for a compiler's address and undefined-behaviour sanitizers
 * (tests/test_native.py builds and runs it). Every buffer is as long as what the kernel may touch. */
#define LAM_SUFFIX _sanitizer
#include "lam_memory.c"
#include <stdio.h>

int64_t lam_supported(void);
#define VARIANT(name)                                                                                        \
    int64_t lam_forward_##name(const struct lam_layer *, const struct lam_rows *, parallel, int64_t);        \
    int64_t lam_backward_##name(const struct lam_layer *, const struct lam_rows *, const struct lam_backward *, \
                                parallel, int64_t);                                                          \
    void lam_gelu_##name(void *, const void *, int64_t, int64_t, int64_t, parallel, int64_t);                \
    void lam_add_norm_##name(void *, const void *, const void *, const void *, const void *, const void *, float, \
                             int64_t, int64_t, int64_t, parallel, int64_t);
VARIANT(avx512)
VARIANT(avx2)
VARIANT(plain)
typedef int64_t (*forward)(const struct lam_layer *, const struct lam_rows *, parallel, int64_t);
typedef int64_t (*backward)(const struct lam_layer *, const struct lam_rows *, const struct lam_backward *, parallel, int64_t);
typedef void (*gelu)(void *, const void *, int64_t, int64_t, int64_t, parallel, int64_t);
typedef void (*add_norm)(void *, const void *, const void *, const void *, const void *, const void *, float, int64_t, int64_t,
                         int64_t, parallel, int64_t);

static float *numbers(int64_t count, float scale) {
    float *x = malloc(count * sizeof *x);
    for (int64_t i = 0; i < count; i++) x[i] = scale * (2.0f * (float)rand() / (float)RAND_MAX - 1.0f);
    return x;
}

/* Numbers as bfloat16, cut off. */
static half *shortened(const float *x, int64_t count) {
    half *y = malloc(count * sizeof *y);
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        y[i] = bits >> 16;
    }
    return y;
}

static void check(forward run, backward back, int64_t heads, const int64_t *lengths, int64_t texts, int gated, int carried,
                  int64_t chunk) {
    int64_t width = heads * K, stride = 3 * width + 5 * heads + (gated ? 7 : 0), total = 0;
    int64_t *bounds = malloc((texts + 1) * sizeof *bounds);
    for (int64_t i = 0; i <= texts; i++) bounds[i] = total, total += i < texts ? lengths[i] : 0;
    float *p[] = {numbers(3 * width * TAPS, .5f), numbers(3 * width, .5f), numbers(2 * heads, 3), numbers(heads * K * K, .2f),
                  numbers(heads, 1), numbers(HIDDEN * (2 * K + 1), .3f), numbers(HIDDEN, .3f), numbers(HIDDEN, 1),
                  numbers(1, 1), numbers(K, 1)};
    struct lam_layer layer = {heads, p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], 1e-5f, .9f, .4f, chunk};
    int64_t count = total ? (total - 1) * stride + 3 * width + 5 * heads : 0;
    float *z = numbers(count, 3);
    float *gate = gated ? numbers(total * width, 3) : NULL, *y = numbers(total * width, 1), *dy = numbers(total * width, 1);
    float *state = carried ? numbers(texts * heads * 2 * K * K, 1) : NULL;
    float *conv = carried ? numbers(texts * (TAPS - 1) * 3 * width, 1) : NULL;
    half *short_z = shortened(z, count), *short_gate = gated ? shortened(gate, total * width) : NULL;
    half *short_y = malloc(total * width * sizeof *short_y);
    struct lam_rows shorter = {short_z, stride, short_gate, short_y, 1, bounds, texts, state, conv};
    if (run(&layer, &shorter, NULL, 1)) abort();
    for (int64_t i = 0; i < total * width; i++)
        if (!(fabsf(number(short_y, i, 1)) < 1e6f)) abort();
    struct lam_rows rows = {z, stride, gate, y, 0, bounds, texts, state, conv};
    if (run(&layer, &rows, NULL, 1)) abort();
    for (int64_t i = 0; i < total * width; i++)
        if (!(fabsf(y[i]) < 1e6f)) abort();
    int64_t blocks = texts ? texts : 1;
    float *dz = numbers(total * stride, 1), *dgate = gated ? numbers(total * width, 1) : NULL;
    struct lam_gradient *gradient = calloc(blocks * heads, sizeof *gradient);
    struct lam_backward b = {dy, dz, dgate, gradient, blocks};
    rows.state = rows.conv = NULL;
    if (back(&layer, &rows, &b, NULL, 1)) abort();
    free(short_z), free(short_gate), free(short_y);
    free(bounds), free(z), free(gate), free(y), free(dy), free(state), free(conv), free(dz), free(dgate), free(gradient);
    for (int i = 0; i < 10; i++) free(p[i]);
}

static void check_elementwise(gelu activate, add_norm add, int64_t rows, int64_t width) {
    float *x = numbers(rows * width, 3), *y = numbers(rows * width, 3), *out = numbers(rows * width, 1);
    float *bias = numbers(width, 1), *weight = numbers(width, 1), *shift = numbers(width, 1);
    half *short_x = shortened(x, rows * width), *short_y = shortened(y, rows * width), *short_bias = shortened(bias, width);
    half *short_weight = shortened(weight, width), *short_shift = shortened(shift, width);
    for (int i = 0; i < 2; i++) add(out, x, y, i ? bias : NULL, weight, shift, 1e-5f, 0, rows, width, NULL, 1);
    activate(x, bias, 0, rows, width, NULL, 1);
    for (int i = 0; i < 2; i++)
        add(short_y, short_x, short_y, i ? short_bias : NULL, short_weight, short_shift, 1e-5f, 1, rows, width, NULL, 1);
    activate(short_x, short_bias, 1, rows, width, NULL, 1);
    for (int64_t i = 0; i < rows * width; i++)
        if (!(fabsf(number(short_y, i, 1)) < 1e3f && fabsf(number(short_x, i, 1)) < 5)) abort();
    free(short_x), free(short_y), free(short_bias), free(short_weight), free(short_shift);
    for (int64_t i = 0; i < rows * width; i++)
        if (!(fabsf(out[i]) < 1e3f && fabsf(x[i]) < 5)) abort();
    free(x), free(y), free(out), free(bias), free(weight), free(shift);
}

int main(void) {
    static const int64_t lengths[] = {0, 1, 2, 3, 15, 16, 17, 31, 33, 63, 64, 65, 130, 200}, chunks[] = {0, 16, 48, 64, 128};
    forward runs[] = {lam_forward_avx512, lam_forward_avx2, lam_forward_plain};
    backward backs[] = {lam_backward_avx512, lam_backward_avx2, lam_backward_plain};
    gelu gelus[] = {lam_gelu_avx512, lam_gelu_avx2, lam_gelu_plain};
    add_norm norms[] = {lam_add_norm_avx512, lam_add_norm_avx2, lam_add_norm_plain};
    for (int variant = 0; variant < 3; variant++) {
        if (!(lam_supported() >> variant & 1)) continue;
        for (int64_t width = 1; width < 140; width++)
            for (int64_t rows = 0; rows < 3; rows++) check_elementwise(gelus[variant], norms[variant], rows, width);
        check_elementwise(gelus[variant], norms[variant], 50, 1536);
        for (int kind = 0; kind < 4; kind++) {
            for (int i = 0; i < 14; i++) check(runs[variant], backs[variant], 3, lengths + i, 1, kind & 1, kind & 2, 0);
            for (int i = 0; i < 5; i++) check(runs[variant], backs[variant], 2, lengths, 14, kind & 1, kind & 2, chunks[i]);
            check(runs[variant], backs[variant], 2, lengths, 0, kind & 1, kind & 2, 0);
        }
        printf("variant %d\n", variant);
    }
    return 0;
}
