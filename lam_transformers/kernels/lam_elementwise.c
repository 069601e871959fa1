/* Copyright 2026 The LAM authors. Licensed under the Apache License, Version 2.0.
 *
 * What lies between the matrix products of a layer after its memory: bias and GELU, and sums with their LayerNorm, each
 * in one pass over the rows. Included after lam_memory.c, whose vectors it uses. A row's result depends on that row alone.
 */

/* Concatenated rows of `width` numbers; a piece of work is a few of them. */
struct elementwise {
    float *out;
    const float *x, *y, *bias; /* y [rows][width]; bias [width] or NULL */
    const float *weight, *shift;
    float eps;
    int64_t rows, width, next, rows_of_piece;
};

/* The first `count` numbers at p, then `rest`. */
INLINE vec load_some(const float *p, int64_t count, float rest) {
    if (count >= LANES) return load(p);
    float x[LANES];
    store(x, splat(rest));
    memcpy(x, p, count * sizeof *p);
    return load(x);
}

INLINE void store_some(float *p, int64_t count, vec x) {
    if (count >= LANES)
        store(p, x);
    else
        memcpy(p, &x, count * sizeof *p);
}

/* x Phi(x) = max(x, 0) - |x| Phi(-|x|) in place of n <= 4 vectors x, Phi the normal distribution's: within 1e-7 below 2,
 * above it the nearest number. log2 Phi(-a) is a polynomial in a, fitted up to 6; beyond that a Phi(-a) stays at its value
 * there, 6e-9. NaN stays NaN. */
INLINE void gelus(vec *x, int n) {
    static const float log2_tail[] = {2.46334338e-07f,  -5.56945724e-06f, 5.06009674e-05f,  -2.05689852e-04f,
                                      -1.30191591e-04f, 7.08589377e-03f,  -5.25261238e-02f, -4.59194779e-01f,
                                      -1.15110719f,     -9.99999940e-01f};
    static const float exp2[] = {1.32647273e-03f, 9.67151299e-03f, 5.55073358e-02f, 2.40222424e-01f, 6.93147004e-01f, 1.0f};
    vec a[4], power[4], shifted[4], tail[4];
    EACH a[j] = clamp((vec)((ivec)x[j] & 0x7FFFFFFF), 0.0f, 6.0f);
    EACH power[j] = splat(log2_tail[0]);
    for (int i = 1; i < 10; i++) EACH power[j] = power[j] * a[j] + log2_tail[i];
    EACH shifted[j] = power[j] + 12582912.0f; /* its low bits: the nearest integer */
    EACH power[j] -= shifted[j] - 12582912.0f;
    EACH tail[j] = splat(exp2[0]);
    for (int i = 1; i < 6; i++) EACH tail[j] = tail[j] * power[j] + exp2[i];
    EACH tail[j] = (vec)((ivec)tail[j] + ((ivec)shifted[j] << 23));
    EACH x[j] = clamp(x[j], 0.0f, INFINITY) - a[j] * tail[j];
}

static void gelu_row(const struct elementwise *e, int64_t row) {
    int64_t width = e->width, c = 0;
    const float *bias = e->bias;
    float *x = e->out + row * width;
    vec v[4];
    for (; c + 4 * LANES <= width; c += 4 * LANES) {
        for (int j = 0; j < 4; j++) v[j] = load(x + c + j * LANES) + load(bias + c + j * LANES);
        gelus(v, 4);
        for (int j = 0; j < 4; j++) store(x + c + j * LANES, v[j]);
    }
    for (; c < width; c += LANES) {
        *v = load_some(x + c, width - c, 0) + load_some(bias + c, width - c, 0);
        gelus(v, 1);
        store_some(x + c, width - c, *v);
    }
}

static void norm_row(const struct elementwise *e, int64_t row) {
    int64_t width = e->width;
    const float *x = e->x + row * width, *y = e->y + row * width, *bias = e->bias, *weight = e->weight, *shift = e->shift;
    float *out = e->out + row * width;
    vec total = splat(0), squares = splat(0);
    for (int64_t c = 0; c < width; c += LANES) {
        vec v = load_some(x + c, width - c, 0) + load_some(y + c, width - c, 0);
        if (bias) v += load_some(bias + c, width - c, 0);
        store_some(out + c, width - c, v);
        total += v;
    }
    float mean = sum(total) / (float)width;
    for (int64_t c = 0; c < width; c += LANES) {
        vec v = load_some(out + c, width - c, mean) - mean;
        squares += v * v;
    }
    float scale = 1.0f / sqrtf(sum(squares) / (float)width + e->eps);
    for (int64_t c = 0; c < width; c += LANES) {
        vec v = (load_some(out + c, width - c, 0) - mean) * scale;
        store_some(out + c, width - c, v * load_some(weight + c, width - c, 0) + load_some(shift + c, width - c, 0));
    }
}

INLINE void take_rows(struct elementwise *e, void (*each)(const struct elementwise *, int64_t)) {
    int64_t row;
    while ((row = __atomic_fetch_add(&e->next, e->rows_of_piece, __ATOMIC_RELAXED)) < e->rows)
        for (int64_t end = row + e->rows_of_piece; row < end && row < e->rows; row++) each(e, row);
}

static void gelu_worker(void *data) { take_rows(data, gelu_row); }
static void norm_worker(void *data) { take_rows(data, norm_row); }

static void run_rows(struct elementwise *e, void (*worker)(void *), parallel team, int64_t threads) {
    e->rows_of_piece = 16384 / (e->width + 1) + 1;
    int64_t pieces = (e->rows + e->rows_of_piece - 1) / e->rows_of_piece;
    on_team(worker, e, pieces, team, threads);
}

/* x [rows][width] = GELU(x + bias) */
void JOIN(lam_gelu, LAM_SUFFIX)(float *x, const float *bias, int64_t rows, int64_t width, parallel team, int64_t threads) {
    struct elementwise e = {.out = x, .bias = bias, .rows = rows, .width = width};
    run_rows(&e, gelu_worker, team, threads);
}

/* out [rows][width] = LayerNorm(x + y + bias) weight + shift; out may be x or y, bias NULL. */
void JOIN(lam_add_norm, LAM_SUFFIX)(float *out, const float *x, const float *y, const float *bias, const float *weight,
                                    const float *shift, float eps, int64_t rows, int64_t width, parallel team,
                                    int64_t threads) {
    struct elementwise e = {out, x, y, bias, weight, shift, eps, rows, width, 0, 0};
    run_rows(&e, norm_worker, team, threads);
}
