/* Copyright 2026 The LAM authors. Licensed under the Apache License, Version 2.0.
 *
 * What lies between the matrix products of a layer after its memory: bias and GELU, and sums with their LayerNorm, each
 * in one pass over the rows. Included after lam_memory.c, whose vectors it uses. A row's result depends on that row alone.
 * All arrays of a call are float32, or all are bfloat16; the arithmetic is float32.
 */

/* Concatenated rows of `width` numbers; a piece of work is a few of them. */
struct elementwise {
    void *out;
    const void *x, *y, *bias; /* x, y [rows][width]; bias [width] or NULL */
    const void *weight, *shift;
    float eps;
    int64_t in_half; /* all of them are bfloat16, not float */
    int64_t rows, width, next, rows_of_piece;
};

/* At most LANES numbers, those from the place i to before `end`, then `rest`. */
INLINE vec load_some(const void *p, int64_t i, int64_t end, float rest, int64_t in_half) {
    if (end - i >= LANES) return load_any(p, i, in_half);
    float x[LANES];
    store(x, splat(rest));
    for (int j = 0; j < end - i; j++) x[j] = number(p, i + j, in_half);
    return load(x);
}

INLINE void store_some(void *p, int64_t i, int64_t end, vec x, int64_t in_half) {
    if (end - i >= LANES) {
        store_any(p, i, x, in_half);
    } else if (in_half) {
        halves rounded = narrow(x);
        memcpy((half *)p + i, &rounded, (end - i) * sizeof(half));
    } else {
        memcpy((float *)p + i, &x, (end - i) * sizeof(float));
    }
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

INLINE void gelu_row(const struct elementwise *e, int64_t row, int64_t in_half) {
    int64_t start = row * e->width, end = start + e->width, at = start;
    vec v[4];
    for (; at + 4 * LANES <= end; at += 4 * LANES) {
        for (int j = 0; j < 4; j++) {
            int64_t place = at + j * LANES;
            v[j] = load_any(e->x, place, in_half) + load_any(e->bias, place - start, in_half);
        }
        gelus(v, 4);
        for (int j = 0; j < 4; j++) store_any(e->out, at + j * LANES, v[j], in_half);
    }
    for (; at < end; at += LANES) {
        *v = load_some(e->x, at, end, 0, in_half) + load_some(e->bias, at - start, e->width, 0, in_half);
        gelus(v, 1);
        store_some(e->out, at, end, *v, in_half);
    }
}

/* x + y + bias at the place c of a row, zeros after its end. */
INLINE vec added(const struct elementwise *e, int64_t row, int64_t c, int64_t in_half) {
    int64_t start = row * e->width, end = start + e->width;
    vec v = load_some(e->x, start + c, end, 0, in_half) + load_some(e->y, start + c, end, 0, in_half);
    if (e->bias) v += load_some(e->bias, c, e->width, 0, in_half);
    return v;
}

INLINE void norm_row(const struct elementwise *e, int64_t row, float *sums, int64_t in_half) {
    int64_t width = e->width, start = row * width;
    vec total = splat(0), squares = splat(0);
    for (int64_t c = 0; c < width; c += LANES) {
        vec v = added(e, row, c, in_half);
        store(sums + c, v);
        total += v;
    }
    float mean = sum(total) / (float)width;
    for (int64_t c = 0; c < width; c += LANES) {
        vec v = load_some(sums, c, width, mean, 0) - mean;
        squares += v * v;
    }
    float scale = 1.0f / sqrtf(sum(squares) / (float)width + e->eps);
    for (int64_t c = 0; c < width; c += LANES) {
        vec v = (load(sums + c) - mean) * scale;
        v = v * load_some(e->weight, c, width, 0, in_half) + load_some(e->shift, c, width, 0, in_half);
        store_some(e->out, start + c, start + width, v, in_half);
    }
}

static void gelu_any(const struct elementwise *e, int64_t row) {
    if (e->in_half)
        gelu_row(e, row, 1);
    else
        gelu_row(e, row, 0);
}

static void norm_any(const struct elementwise *e, int64_t row) {
    float sums[(e->width + LANES - 1) / LANES * LANES];
    if (e->in_half)
        norm_row(e, row, sums, 1);
    else
        norm_row(e, row, sums, 0);
}

INLINE void take_rows(struct elementwise *e, void (*each)(const struct elementwise *, int64_t)) {
    int64_t row;
    while ((row = __atomic_fetch_add(&e->next, e->rows_of_piece, __ATOMIC_RELAXED)) < e->rows)
        for (int64_t end = row + e->rows_of_piece; row < end && row < e->rows; row++) each(e, row);
}

static void gelu_worker(void *data) { take_rows(data, gelu_any); }
static void norm_worker(void *data) { take_rows(data, norm_any); }

static void run_rows(struct elementwise *e, void (*worker)(void *), parallel team, int64_t threads) {
    e->rows_of_piece = 16384 / (e->width + 1) + 1;
    int64_t pieces = (e->rows + e->rows_of_piece - 1) / e->rows_of_piece;
    on_team(worker, e, pieces, team, threads);
}

/* x [rows][width] = GELU(x + bias) */
void JOIN(lam_gelu, LAM_SUFFIX)(void *x, const void *bias, int64_t in_half, int64_t rows, int64_t width, parallel team,
                                int64_t threads) {
    struct elementwise e = {.out = x, .x = x, .bias = bias, .in_half = in_half, .rows = rows, .width = width};
    run_rows(&e, gelu_worker, team, threads);
}

/* out [rows][width] = LayerNorm(x + y + bias) weight + shift; out may be x or y, bias NULL. */
void JOIN(lam_add_norm, LAM_SUFFIX)(void *out, const void *x, const void *y, const void *bias, const void *weight,
                                    const void *shift, float eps, int64_t in_half, int64_t rows, int64_t width,
                                    parallel team, int64_t threads) {
    struct elementwise e = {out, x, y, bias, weight, shift, eps, in_half, rows, width, 0, 0};
    run_rows(&e, norm_worker, team, threads);
}
