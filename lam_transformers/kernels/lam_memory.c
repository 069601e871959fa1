/* Copyright 2026 The LAM authors. Licensed under the Apache License, Version 2.0.
 *
 * The inside of one LAM memory layer, forward and backward: from the projections of x to the input of the output
 * projection (convolution, SiLU, normalisation, flux, both memories, norm and gate; docs/ALGORITHM.md has the
 * equations). Token by token, one (text, head) after the other, with both memories in the first-level cache.
 *
 * Two-way reading: a text is taken in chunks of `chunk` tokens from its start. The tokens are written one after the other as
 * always; the fast memory is read after each token, the slow one with the queries of a whole chunk when its last token (or
 * the last of the text) has been written.
 *
 * Head size 32, kernel of 4 taps, flux of 16 hidden units; the callers check. All numbers float32; forward also reads z and
 * the gate and writes y in bfloat16, and computes in float32. The file is compiled once per instruction set, with its own
 * LAM_SUFFIX and LANES; vectors are the compiler's own.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define K 32
#define TAPS 4
#define HIDDEN 16
#define BLOCK 64 /* tokens whose states backward keeps at once; more where a chunk has more */
#define GROUP 16 /* tokens that go through each stage together */
#ifndef LANES
#define LANES 4 /* floats in a vector: 4, 8 or 16 */
#endif
#define ROW (K / LANES)    /* vectors in a row of K floats */
#define UNITS (HIDDEN / LANES)
#define TOGETHER (LANES / 4) /* tokens, as many as there are registers for */

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#ifndef LAM_SUFFIX
#define LAM_SUFFIX _plain
#endif

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t half; /* a bfloat16: the upper half of a float32 */
typedef half halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef float memory[2][K][K] __attribute__((aligned(64))); /* fast and slow, in mode space */

struct lam_layer {
    int64_t heads;
    const float *conv_weight;  /* [3 D][TAPS] */
    const float *conv_bias;    /* [3 D] */
    const float *decay_bias;   /* [2][H], fast, slow */
    const float *bilinear;     /* [H][K][K] */
    const float *temperature;  /* [H] */
    const float *flux_in;      /* [HIDDEN][2 K + 1] */
    const float *flux_in_bias; /* [HIDDEN] */
    const float *flux_out;     /* [HIDDEN] */
    const float *flux_out_bias; /* [1] */
    const float *norm_weight;  /* [K] */
    float eps, cosine, sine;
    int64_t chunk; /* tokens, for two-way reading: a multiple of GROUP; or 0: both memories are read after each token */
};

struct lam_rows {
    const void *z;         /* [T][z_stride]: q, k, v of all heads, then beta, slow, fast, gate_fast, gate_slow */
    int64_t z_stride;
    const void *gate;      /* [T][D] logits of the output gate, or NULL */
    void *y;               /* [T][D] */
    int64_t in_half;       /* z, gate and y are bfloat16, not float; forward only */
    const int64_t *bounds; /* [texts + 1] */
    int64_t texts;
    float *state;          /* [texts][H][2][K][K] in and out, or NULL: from zero and not kept */
    float *conv;           /* [texts][TAPS - 1][3 D] in and out, or NULL */
};

/* Gradients of one head's share of the parameters, summed over a block of texts. */
struct lam_gradient {
    float taps[3][TAPS][K], conv_bias[3][K], bilinear[K][K], flux_in[HIDDEN][2 * K], flux_resonance[HIDDEN];
    float flux_in_bias[HIDDEN], flux_out[HIDDEN], norm_weight[K], decay_bias[2], temperature, flux_out_bias;
};

struct lam_backward {
    const float *dy;  /* [T][D] */
    float *dz;        /* [T][z_stride], the columns that z uses */
    float *dgate;     /* [T][D] or NULL */
    struct lam_gradient *gradient; /* [blocks][H], zeros */
    int64_t blocks;   /* of texts; text i belongs to block i * blocks / texts */
};

static inline vec load(const float *p) { return *(const vec *)p; }
static inline void store(float *p, vec x) { *(vec *)p = x; }
static inline void add_to(float *p, vec x) { store(p, load(p) + x); }

/* bfloat16 to float32, exactly, and back to the nearest one, of two that are as near the even one; NaN stays NaN. */
static inline vec widen(halves x) { return (vec)(__builtin_convertvector(x, ivec) << 16); }
static inline halves narrow(vec x) {
    ivec bits = (ivec)x, nan = x != x;
    ivec nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    return __builtin_convertvector((nearest & ~nan) | (0x7FC0 & nan), halves);
}

/* LANES numbers from the place i on of an array of float or bfloat16. */
static inline vec load_any(const void *p, int64_t i, int64_t in_half) {
    return in_half ? widen(*(const halves *)((const half *)p + i)) : load((const float *)p + i);
}
static inline void store_any(void *p, int64_t i, vec x, int64_t in_half) {
    if (in_half)
        *(halves *)((half *)p + i) = narrow(x);
    else
        store((float *)p + i, x);
}
static inline float number(const void *p, int64_t i, int64_t in_half) {
    if (!in_half) return ((const float *)p)[i];
    uint32_t bits = (uint32_t)((const half *)p)[i] << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, (ivec){__VA_ARGS__})
#endif

/* splat(x): x in all lanes. sums(x): the sums of LANES vectors as one vector; x is overwritten. */
#if LANES == 16
static inline vec splat(float x) { return (vec){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
static inline vec sums(vec *x) {
    for (int i = 0; i < 16; i += 2)
        x[i / 2] = SHUFFLE(x[i], x[i + 1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                   SHUFFLE(x[i], x[i + 1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    for (int i = 0; i < 8; i += 2)
        x[i / 2] = SHUFFLE(x[i], x[i + 1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
                   SHUFFLE(x[i], x[i + 1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    for (int i = 0; i < 4; i += 2)
        x[i / 2] = SHUFFLE(x[i], x[i + 1], 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
                   SHUFFLE(x[i], x[i + 1], 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
    return SHUFFLE(x[0], x[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           SHUFFLE(x[0], x[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
#elif LANES == 8
static inline vec splat(float x) { return (vec){x, x, x, x, x, x, x, x}; }
static inline vec sums(vec *x) {
    for (int i = 0; i < 8; i += 2)
        x[i / 2] = SHUFFLE(x[i], x[i + 1], 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(x[i], x[i + 1], 4, 5, 6, 7, 12, 13, 14, 15);
    for (int i = 0; i < 4; i += 2)
        x[i / 2] = SHUFFLE(x[i], x[i + 1], 0, 1, 4, 5, 8, 9, 12, 13) + SHUFFLE(x[i], x[i + 1], 2, 3, 6, 7, 10, 11, 14, 15);
    return SHUFFLE(x[0], x[1], 0, 2, 4, 6, 8, 10, 12, 14) + SHUFFLE(x[0], x[1], 1, 3, 5, 7, 9, 11, 13, 15);
}
#else
static inline vec splat(float x) { return (vec){x, x, x, x}; }
static inline vec sums(vec *x) {
    for (int i = 0; i < 4; i += 2)
        x[i / 2] = SHUFFLE(x[i], x[i + 1], 0, 1, 4, 5) + SHUFFLE(x[i], x[i + 1], 2, 3, 6, 7);
    return SHUFFLE(x[0], x[1], 0, 2, 4, 6) + SHUFFLE(x[0], x[1], 1, 3, 5, 7);
}
#endif

static inline float sum(vec x) {
    float y[LANES];
    store(y, x);
    for (int n = LANES / 2; n; n /= 2)
        for (int i = 0; i < n; i++) y[i] += y[i + n];
    return y[0];
}

#if LANES == 16 && defined(__AVX512F__)
/* min(max(x, low), high); NaN stays NaN. */
static inline vec clamp(vec x, float low, float high) {
    return (vec)_mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), (__m512)x));
}
/* A first guess at 1 / x and at 1 / sqrt(x), and how many of Newton's iterations it needs for float32. */
static inline vec guess_reciprocal(vec x) { return (vec)_mm512_rcp14_ps((__m512)x); }
static inline vec guess_inverse_root(vec x) { return (vec)_mm512_rsqrt14_ps((__m512)x); }
#define ITERATIONS 1
#else
static inline vec choose(ivec mask, vec yes, vec no) { return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask)); }
static inline vec clamp(vec x, float low, float high) {
    x = choose(x > splat(high), splat(high), x);
    return choose(x < splat(low), splat(low), x);
}
static inline vec guess_reciprocal(vec x) { return (vec)(0x7EF311C7 - (ivec)x); }
static inline vec guess_inverse_root(vec x) { return (vec)(0x5F3759DF - ((ivec)x >> 1)); }
#define ITERATIONS 4
#endif

/* The functions below work on several vectors at a time, step by step: one vector's chain of dependent operations would
 * leave the processor waiting. */
#define EACH for (int j = 0; j < n; j++)
#define FOR_ROW for (int c = 0; c < ROW; c++)
#define INLINE static inline __attribute__((always_inline))

/* 1 / sqrt(x) for x that is neither tiny nor huge, to about 1 unit in the last place; NaN stays NaN. */
static inline vec inverse_root(vec x) {
    vec y = guess_inverse_root(x);
    for (int i = 0; i < ITERATIONS; i++) y += y * (0.5f - 0.5f * x * y * y);
    return y;
}

/* 1 / (1 + exp(-x)) in place of n <= 6 vectors x, to about 4 units in the last place; NaN stays NaN. */
INLINE void sigmoids(vec *x, int n) {
    vec shifted[6], power[6], r[6];
    EACH x[j] = clamp(-x[j], -80.0f, 80.0f);
    EACH shifted[j] = x[j] * 1.44269504f + 12582912.0f; /* its low bits: the nearest integer */
    EACH power[j] = shifted[j] - 12582912.0f;
    EACH r[j] = x[j] - power[j] * 0.693359375f;
    EACH r[j] += power[j] * 2.12194440e-4f;
    EACH x[j] = r[j] * 1.9875691500e-4f + 1.3981999507e-3f;
    EACH x[j] = x[j] * r[j] + 8.3334519073e-3f;
    EACH x[j] = x[j] * r[j] + 4.1665795894e-2f;
    EACH x[j] = x[j] * r[j] + 1.6666665459e-1f;
    EACH x[j] = x[j] * r[j] + 5.0000001201e-1f;
    EACH x[j] = x[j] * (r[j] * r[j]) + (r[j] + 1.0f);
    EACH x[j] = 1.0f + (vec)((ivec)x[j] + ((ivec)shifted[j] << 23));
    EACH r[j] = guess_reciprocal(x[j]);
    for (int i = 0; i < ITERATIONS; i++) EACH r[j] += r[j] * (1.0f - x[j] * r[j]);
    EACH x[j] = r[j];
}

static inline vec sigmoid(vec x) {
    sigmoids(&x, 1);
    return x;
}

/* What one head needs of its layer, in the order in which it is used. */
struct head {
    float taps[3][TAPS][K] __attribute__((aligned(64))), conv_bias[3][K];
    float flux_in[2 * K][HIDDEN], flux_resonance[HIDDEN], flux_in_bias[HIDDEN], flux_out[HIDDEN], norm_weight[K];
    const float *bilinear, *flux_in_rows;
    float fast_bias, slow_bias, temperature, flux_out_bias, eps, cosine, sine;
    int64_t index, heads, width, chunk;
};

static void prepare(struct head *h, const struct lam_layer *p, int64_t index) {
    h->index = index, h->heads = p->heads, h->width = p->heads * K, h->chunk = p->chunk;
    for (int part = 0; part < 3; part++)
        for (int c = 0; c < K; c++) {
            int64_t channel = part * h->width + index * K + c;
            h->conv_bias[part][c] = p->conv_bias[channel];
            for (int j = 0; j < TAPS; j++) h->taps[part][j][c] = p->conv_weight[channel * TAPS + j];
        }
    for (int j = 0; j < HIDDEN; j++) {
        const float *row = p->flux_in + j * (2 * K + 1);
        for (int i = 0; i < 2 * K; i++) h->flux_in[i][j] = row[i];
        h->flux_resonance[j] = row[2 * K];
    }
    memcpy(h->flux_in_bias, p->flux_in_bias, sizeof h->flux_in_bias);
    memcpy(h->flux_out, p->flux_out, sizeof h->flux_out);
    memcpy(h->norm_weight, p->norm_weight, sizeof h->norm_weight);
    h->bilinear = p->bilinear + index * K * K, h->flux_in_rows = p->flux_in;
    h->fast_bias = p->decay_bias[index], h->slow_bias = p->decay_bias[p->heads + index];
    h->temperature = p->temperature[index], h->flux_out_bias = *p->flux_out_bias;
    h->eps = p->eps, h->cosine = p->cosine, h->sine = p->sine;
}

/* All that forward computes for GROUP tokens on the way; what is one number a token is a vector over the tokens. Backward
 * reads all of it, forward only the first part. */
struct group {
    float q[GROUP][K] __attribute__((aligned(64))), k[GROUP][K], v[GROUP][K], o[GROUP][K];
    float beta[GROUP], slow[GROUP], fast[GROUP], gate_fast[GROUP], gate_slow[GROUP], psi[GROUP];
    float decay[2][GROUP], write[2][GROUP], read[2][GROUP], q_scale[GROUP], k_scale[GROUP], o_scale[GROUP];
    float resonance[GROUP];
    float convolved[GROUP][3][K], error[GROUP][2][K], recall[GROUP][2][K];
    float bilinear_q[GROUP][K], flux_hidden[GROUP][HIDDEN]; /* q' W; before the SiLU */
};

/* The last inputs of the convolution, oldest first. */
struct window { vec past[3][TAPS - 1][ROW]; };

/* The sums of `count` <= GROUP vectors, one a token; the others are zero. */
INLINE void lane_sums(vec *x, int count, float *out) {
    for (int t = count; t < GROUP; t++) x[t] = splat(0);
    for (int t = 0; t < GROUP; t += LANES) store(out + t, sums(x + t));
}

INLINE void square_sums(float rows[GROUP][K], int count, float *out) {
    vec x[GROUP];
    for (int t = 0; t < count; t++) {
        x[t] = load(rows[t]) * load(rows[t]);
        for (int c = LANES; c < K; c += LANES) x[t] += load(rows[t] + c) * load(rows[t] + c);
    }
    lane_sums(x, count, out);
}

/* Up to GROUP tokens, from token `at` on, up to the memories. Stage by stage, so that the tokens' chains of dependent
 * operations overlap. */
INLINE void before_memory(const struct head *h, const struct lam_rows *rows, int64_t at, int count, struct window *w,
                          struct group *g, int keep) {
    int64_t z = at * rows->z_stride, in_half = rows->in_half;
    vec in[TAPS - 1 + GROUP], product[GROUP], hidden[GROUP][UNITS], x[TOGETHER * UNITS + 1], s[TOGETHER * UNITS + 6];
    for (int part = 0; part < 3; part++)
        for (int c = 0; c < K; c += LANES) {
            const float *taps = h->taps[part][0] + c;
            int64_t from = z + part * h->width + h->index * K + c;
            float *to = (part == 0 ? g->q[0] : part == 1 ? g->k[0] : g->v[0]) + c;
            for (int j = 0; j < TAPS - 1; j++) in[j] = w->past[part][j][c / LANES];
            for (int t = 0; t < count; t++) in[TAPS - 1 + t] = load_any(rows->z, from + t * rows->z_stride, in_half);
            for (int j = 0; j < TAPS - 1; j++) w->past[part][j][c / LANES] = in[count + j];
            for (int t = count; t % TOGETHER; t++) in[TAPS - 1 + t] = splat(0);
            for (int t = 0; t < count; t += TOGETHER) {
                for (int j = 0; j < TOGETHER; j++) x[j] = load(h->conv_bias[part] + c);
                for (int i = 0; i < TAPS; i++)
                    for (int j = 0; j < TOGETHER; j++) x[j] += load(taps + i * K) * in[t + j + i];
                for (int j = 0; j < TOGETHER; j++) s[j] = x[j];
                sigmoids(s, TOGETHER);
                for (int j = 0; j < TOGETHER; j++) store(to + (t + j) * K, x[j] * s[j]);
                for (int j = 0; keep && j < TOGETHER; j++) store(g->convolved[t + j][part] + c, x[j]);
            }
        }
    for (int part = 0; part < 2; part++) {
        float(*rows)[K] = part ? g->k : g->q, *scale = part ? g->k_scale : g->q_scale;
        square_sums(rows, count, scale);
        for (int t = 0; t < GROUP; t += LANES) store(scale + t, inverse_root(load(scale + t) + 1e-6f));
        for (int t = 0; t < count; t++)
            for (int c = 0; c < K; c += LANES) store(rows[t] + c, load(rows[t] + c) * scale[t]);
    }
    for (int t = 0; t < count; t += TOGETHER) { /* several tokens to a load of the weights */
        vec a[TOGETHER][ROW] = {0}, b[TOGETHER][UNITS];
        for (int j = 0; j < TOGETHER; j++)
            for (int c = 0; c < UNITS; c++) b[j][c] = load(h->flux_in_bias + c * LANES);
        for (int i = 0; i < K; i++)
            for (int j = 0; j < TOGETHER; j++) {
                for (int c = 0; c < ROW; c++) a[j][c] += load(h->bilinear + i * K + c * LANES) * g->q[t + j][i];
                for (int c = 0; c < UNITS; c++) b[j][c] += load(h->flux_in[i] + c * LANES) * g->q[t + j][i];
                for (int c = 0; c < UNITS; c++) b[j][c] += load(h->flux_in[K + i] + c * LANES) * g->k[t + j][i];
            }
        for (int j = 0; j < TOGETHER; j++) {
            product[t + j] = splat(0);
            for (int c = 0; c < ROW; c++) product[t + j] += a[j][c] * load(g->k[t + j] + c * LANES);
            for (int c = 0; keep && c < ROW; c++) store(g->bilinear_q[t + j] + c * LANES, a[j][c]);
            memcpy(hidden[t + j], b[j], sizeof b[j]);
        }
    }
    lane_sums(product, count, g->resonance);
    for (int t = 0; t < GROUP; t += LANES) store(g->resonance + t, load(g->resonance + t) / h->temperature);
    for (int t = 0; t < count; t += TOGETHER) {
        for (int j = 0; j < TOGETHER; j++)
            for (int c = 0; c < UNITS; c++)
                s[j * UNITS + c] = hidden[t + j][c] += load(h->flux_resonance + c * LANES) * g->resonance[t + j];
        sigmoids(s, TOGETHER * UNITS);
        for (int j = 0; j < TOGETHER; j++) {
            product[t + j] = splat(0);
            for (int c = 0; c < UNITS; c++)
                product[t + j] += hidden[t + j][c] * s[j * UNITS + c] * load(h->flux_out + c * LANES);
        }
    }
    lane_sums(product, count, g->psi);
    for (int t = 0; keep && t < count; t++) memcpy(g->flux_hidden[t], hidden[t], sizeof hidden[t]);

    float logits[5][GROUP] = {0};
    for (int t = 0; t < count; t++)
        for (int j = 0; j < 5; j++) {
            int64_t place = z + t * rows->z_stride + 3 * h->width + j * h->heads + h->index;
            logits[j][t] = number(rows->z, place, in_half);
        }
    for (int t = 0; t < GROUP; t += LANES) {
        for (int j = 0; j < 5; j++) s[j] = load(logits[j] + t);
        s[1] += h->slow_bias, s[2] += h->fast_bias, s[5] = load(g->psi + t) + h->flux_out_bias;
        sigmoids(s, 6);
        vec slow = s[1], fast = s[2], gate_fast = s[3], gate_slow = s[4], psi = s[5], rest = 1 - psi;
        vec read_fast = gate_fast * rest, read_slow = gate_slow * psi;
        store(g->beta + t, s[0]), store(g->slow + t, slow), store(g->fast + t, fast), store(g->psi + t, psi);
        store(g->gate_fast + t, gate_fast), store(g->gate_slow + t, gate_slow);
        store(g->decay[0] + t, slow * fast), store(g->decay[1] + t, slow);
        store(g->write[0] + t, h->cosine * rest - h->sine * psi);
        store(g->write[1] + t, h->sine * rest + h->cosine * psi);
        store(g->read[0] + t, h->cosine * read_fast - h->sine * read_slow);
        store(g->read[1] + t, h->sine * read_fast + h->cosine * read_slow);
    }
}

/* What both memories hold for a key. */
struct held { float of[2][K] __attribute__((aligned(64))); };

static inline void look_up(const memory m, const float *k, struct held *held) {
    for (int mode = 0; mode < 2; mode++) {
        vec f[ROW] = {0};
        for (int i = 0; i < K; i++)
            for (int c = 0; c < ROW; c++) f[c] += load(m[mode][i] + c * LANES) * k[i];
        memcpy(held->of[mode], f, sizeof f);
    }
}

/* Four vectors of the memories' columns, from `tile` on, through token t of the group (see through_memory). The recall of
 * the first `readers` of them is wanted. */
INLINE void through_tile(struct group *g, int t, const float *next_k, const memory before, memory after,
                         struct held *held, float recall[2][K], int tile, int keep, int readers) {
    vec e[4], r[4] = {0}, f[4] = {0}, decay[4];
    for (int j = 0; j < 4; j++) {
        int mode = (tile + j) / ROW, c = (tile + j) % ROW * LANES;
        decay[j] = splat(g->decay[mode][t]);
        e[j] = g->write[mode][t] * load(g->v[t] + c) - decay[j] * load(held->of[mode] + c);
        if (keep) store(g->error[t][mode] + c, e[j]);
        e[j] *= g->beta[t];
    }
#pragma GCC unroll 4
    for (int i = 0; i < K; i++) {
        vec k = splat(g->k[t][i]), q = splat(g->q[t][i]), next = splat(next_k[i]);
        for (int j = 0; j < 4; j++) {
            int mode = (tile + j) / ROW, c = (tile + j) % ROW * LANES;
            vec n = load(before[mode][i] + c) * decay[j] + e[j] * k;
            store(after[mode][i] + c, n);
            if (j < readers) r[j] += n * q;
            f[j] += n * next;
        }
    }
    for (int j = 0; j < 4; j++) {
        int mode = (tile + j) / ROW, c = (tile + j) % ROW * LANES;
        if (j < readers) store(recall[mode] + c, r[j]);
        store(held->of[mode] + c, f[j]);
    }
}

/* Both memories through token t of the group; `before` and `after` may be the same. `held`: what they hold for its key,
 * replaced by what they then hold for next_k, so that one pass over the memories does everything. The columns of a memory
 * do not depend on each other: four vectors of them at a time, which is both memories where a vector has 16 lanes.
 * With `two_way` the slow memory is not read: o is the fast one's part, and read_slow adds the other. */
INLINE void through_memory(struct group *g, int t, const float *next_k, const memory before, memory after,
                           struct held *held, int keep, int two_way) {
    float recall[2][K] __attribute__((aligned(64)));
    if (two_way) {
        for (int tile = 0; tile < ROW; tile += 4)
            through_tile(g, t, next_k, before, after, held, recall, tile, keep, ROW < 4 ? ROW : 4);
        for (int tile = ROW < 4 ? 4 : ROW; tile < 2 * ROW; tile += 4)
            through_tile(g, t, next_k, before, after, held, recall, tile, keep, 0);
        for (int c = 0; c < K; c += LANES) store(g->o[t] + c, load(recall[0] + c) * g->read[0][t]);
        if (keep) memcpy(g->recall[t][0], recall[0], sizeof recall[0]);
        return;
    }
    for (int tile = 0; tile < 2 * ROW; tile += 4)
        through_tile(g, t, next_k, before, after, held, recall, tile, keep, 4);
    for (int c = 0; c < K; c += LANES)
        store(g->o[t] + c, load(recall[0] + c) * g->read[0][t] + load(recall[1] + c) * g->read[1][t]);
    if (keep) memcpy(g->recall[t], recall, sizeof recall);
}

/* What the second part of two-way reading needs of GROUP tokens: their queries, the weights of the slow memory, and o as
 * through_memory leaves it. */
struct waiting { float q[GROUP][K] __attribute__((aligned(64))), o[GROUP][K], read[GROUP]; };

/* o = part + read q' slow, for `count` <= GROUP tokens; o and part may be the same. With `recall` also q' slow. */
INLINE void read_slow(const float slow[K][K], float q[GROUP][K], const float *read, float part[GROUP][K], int count,
                      float o[GROUP][K], float (*recall)[2][K]) {
    for (int t = 0; t < count; t += TOGETHER) { /* several tokens to a load of the memory */
        vec r[TOGETHER][ROW] = {0};
        for (int i = 0; i < K; i++)
            for (int j = 0; j < TOGETHER; j++)
                FOR_ROW r[j][c] += load(slow[i] + c * LANES) * q[t + j][i];
        for (int j = 0; j < TOGETHER && t + j < count; j++)
            FOR_ROW {
                store(o[t + j] + c * LANES, load(part[t + j] + c * LANES) + r[j][c] * read[t + j]);
                if (recall) store(recall[t + j][1] + c * LANES, r[j][c]);
            }
    }
}

static inline void norm_scales(const struct head *h, struct group *g, int count) {
    square_sums(g->o, count, g->o_scale);
    for (int t = 0; t < GROUP; t += LANES)
        store(g->o_scale + t, inverse_root(load(g->o_scale + t) * (1.0f / K) + h->eps));
}

/* Norm and gate for tokens from `at` on: o -> y. */
static inline void after_memory(const struct head *h, const struct lam_rows *rows, int64_t at, int count,
                                struct group *g) {
    int64_t place = at * h->width + h->index * K;
    norm_scales(h, g, count);
    for (int i = 0; i < count * ROW; i += 4) { /* four vectors at a time, from one token or two */
        int t[4], c[4];
        vec s[4];
        for (int j = 0; j < 4; j++) {
            int at = i + j < count * ROW ? i + j : i;
            t[j] = at / ROW, c[j] = at % ROW * LANES;
        }
        for (int j = 0; j < 4; j++) s[j] = splat(1);
        if (rows->gate) {
            for (int j = 0; j < 4; j++) s[j] = load_any(rows->gate, place + t[j] * h->width + c[j], rows->in_half);
            sigmoids(s, 4);
        }
        for (int j = 0; j < 4; j++) {
            vec x = load(g->o[t[j]] + c[j]) * (g->o_scale[t[j]] * load(h->norm_weight + c[j])) * s[j];
            store_any(rows->y, place + t[j] * h->width + c[j], x, rows->in_half);
        }
    }
}

/* The inputs of the convolution ahead of token `at` of a text that starts at `start`. */
static void look_back(const struct head *h, const struct lam_rows *rows, int64_t text, int64_t at, struct window *w) {
    int64_t start = rows->bounds[text];
    for (int j = 0; j < TAPS - 1; j++) {
        int64_t token = at - (TAPS - 1) + j;
        const void *from = NULL;
        int64_t place = 0, in_half = 0;
        if (token >= start)
            from = rows->z, place = token * rows->z_stride, in_half = rows->in_half;
        else if (rows->conv)
            from = rows->conv, place = (text * (TAPS - 1) + (token - start + TAPS - 1)) * 3 * h->width;
        for (int part = 0; part < 3; part++)
            for (int c = 0; c < ROW; c++) {
                int64_t channel = part * h->width + h->index * K + c * LANES;
                w->past[part][j][c] = from ? load_any(from, place + channel, in_half) : splat(0);
            }
    }
}

/* Some heads of one text. They take turns every GROUP tokens, so that the rows of z stay in the second-level cache; with
 * two-way reading every chunk, so that what waits for its end stays in the first-level one. */
struct running { memory state; struct window window; };

static void forward_text(const struct head *heads, const struct lam_rows *rows, int64_t text, int64_t from, int64_t to,
                         struct running *running, struct waiting *waiting) {
    struct group group;
    int64_t chunk = heads->chunk, turn = chunk ? chunk : GROUP;
    int64_t start = rows->bounds[text], end = rows->bounds[text + 1];
    for (int64_t i = from; i < to; i++) {
        if (rows->state)
            memcpy(running[i].state, rows->state + (text * heads->heads + i) * 2 * K * K, sizeof(memory));
        else
            memset(running[i].state, 0, sizeof(memory));
        look_back(heads + i, rows, text, start, &running[i].window);
    }
    for (int64_t first = start; first < end; first += turn) {
        int64_t last = end - first < turn ? end : first + turn;
        for (int64_t i = from; i < to; i++) {
            const struct head *h = heads + i;
            float(*state)[K][K] = running[i].state;
            for (int64_t at = first; at < last; at += GROUP) {
                int count = last - at < GROUP ? (int)(last - at) : GROUP;
                struct held held;
                before_memory(h, rows, at, count, &running[i].window, &group, 0);
                look_up(state, group.k[0], &held);
                if (chunk) {
                    struct waiting *w = waiting + (at - first) / GROUP;
                    for (int t = 0; t < count; t++)
                        through_memory(&group, t, group.k[t + 1 < count ? t + 1 : t], state, state, &held, 0, 1);
                    memcpy(w->q, group.q, sizeof w->q);
                    memcpy(w->o, group.o, sizeof w->o);
                    memcpy(w->read, group.read[1], sizeof w->read);
                } else {
                    for (int t = 0; t < count; t++)
                        through_memory(&group, t, group.k[t + 1 < count ? t + 1 : t], state, state, &held, 0, 0);
                    after_memory(h, rows, at, count, &group);
                }
            }
            for (int64_t at = first; chunk && at < last; at += GROUP) {
                int count = last - at < GROUP ? (int)(last - at) : GROUP;
                struct waiting *w = waiting + (at - first) / GROUP;
                read_slow(state[1], w->q, w->read, w->o, count, group.o, NULL);
                after_memory(h, rows, at, count, &group);
            }
        }
    }
    for (int64_t i = from; i < to; i++) {
        const struct head *h = heads + i;
        if (rows->state) memcpy(rows->state + (text * h->heads + i) * 2 * K * K, running[i].state, sizeof(memory));
        for (int part = 0; rows->conv && part < 3; part++)
            for (int j = 0; j < TAPS - 1; j++)
                memcpy(rows->conv + (text * (TAPS - 1) + j) * 3 * h->width + part * h->width + i * K,
                       running[i].window.past[part][j], K * sizeof(float));
    }
}

/* One token of a group. */
struct token {
    const float *q, *k, *v, *o, *bilinear_q, *flux_hidden, (*convolved)[K], (*error)[K], (*recall)[K];
    float beta, slow, fast, gate_fast, gate_slow, psi, decay[2], write[2], read[2];
    float q_scale, k_scale, o_scale, resonance;
};

static struct token pick(const struct group *g, int t) {
    return (struct token){
        g->q[t], g->k[t], g->v[t], g->o[t], g->bilinear_q[t], g->flux_hidden[t], g->convolved[t], g->error[t],
        g->recall[t], g->beta[t], g->slow[t], g->fast[t], g->gate_fast[t], g->gate_slow[t], g->psi[t],
        {g->decay[0][t], g->decay[1][t]}, {g->write[0][t], g->write[1][t]}, {g->read[0][t], g->read[1][t]},
        g->q_scale[t], g->k_scale[t], g->o_scale[t], g->resonance[t]};
}

/* Backward of one token from y to o: y = norm_weight * o * o_scale * sigmoid(gate). */
INLINE void output_back(const struct head *h, const struct lam_rows *rows, const struct lam_backward *b, int64_t at,
                        const float *o, float o_scale, vec d_o[ROW], struct lam_gradient *g) {
    int64_t place = at * h->width + h->index * K;
    vec n[ROW], dot = {0};
    FOR_ROW {
        vec dy = load(b->dy + place + c * LANES), weight = load(h->norm_weight + c * LANES);
        n[c] = load(o + c * LANES) * o_scale;
        if (rows->gate) {
            vec s = sigmoid(load((const float *)rows->gate + place + c * LANES));
            store(b->dgate + place + c * LANES, dy * n[c] * weight * s * (1 - s));
            dy *= s;
        }
        add_to(g->norm_weight + c * LANES, dy * n[c]);
        d_o[c] = dy * weight;
        dot += d_o[c] * n[c];
    }
    float mean = sum(dot) * (1.0f / K);
    FOR_ROW d_o[c] = o_scale * (d_o[c] - n[c] * mean);
}

/* Backward of one token. seen: the memories that it read. dstate: gradient of the memories after it, replaced by that of
 * the memories before it. later: gradients of the convolution's outputs of the next three tokens, nearest first. w: its
 * inputs before this one. With `two_way` chunk_back has been here: t->o is the gradient of o, and dstate has what reading
 * the slow memory gives it. */
INLINE void step_back(const struct head *h, const struct lam_rows *rows, const struct lam_backward *b, int64_t at,
                      const struct token *t, const memory before, const float (*const seen[2])[K], memory dstate,
                      vec later[3][TAPS - 1][ROW], const struct window *w, struct lam_gradient *g, int two_way) {
    vec d_o[ROW];
    if (two_way)
        FOR_ROW d_o[c] = load(t->o + c * LANES);
    else
        output_back(h, rows, b, at, t->o, t->o_scale, d_o, g);

    /* o = sum read (q' seen); after = decay before + k u', u = beta (write v - k' decay before) */
    float dread[2], dwrite[2];
    vec da[2][ROW], du[2][ROW] = {0}, dq[ROW], dk[ROW], dv[ROW] = {0}, u[2][ROW], dr[2][ROW], rows_of[K];
    for (int mode = 0; mode < 2; mode++) {
        vec s = {0};
        FOR_ROW s += d_o[c] * load(t->recall[mode] + c * LANES);
        FOR_ROW da[mode][c] = d_o[c] * t->read[mode];
        dread[mode] = sum(s);
    }
    for (int i = 0; i < K; i++) {
        vec row = {0};
        for (int mode = 0; mode < 2; mode++)
            FOR_ROW {
                vec d = load(dstate[mode][i] + c * LANES);
                if (!two_way || mode == 0) {
                    d += da[mode][c] * t->q[i];
                    store(dstate[mode][i] + c * LANES, d);
                }
                du[mode][c] += d * t->k[i];
                row += load(seen[mode][i] + c * LANES) * da[mode][c];
            }
        rows_of[i] = row;
    }
    FOR_ROW dq[c] = sums(rows_of + c * LANES);
    vec dbeta_at = {0}, dlog[2] = {{0}, {0}};
    for (int mode = 0; mode < 2; mode++) {
        vec dw = {0};
        FOR_ROW {
            vec e = load(t->error[mode] + c * LANES);
            dbeta_at += du[mode][c] * e;
            u[mode][c] = e * t->beta;
            du[mode][c] *= t->beta;
            dw += du[mode][c] * load(t->v + c * LANES);
            dr[mode][c] = -du[mode][c];
            dv[c] += du[mode][c] * t->write[mode];
        }
        dwrite[mode] = sum(dw);
    }
    for (int i = 0; i < K; i++) {
        vec row = {0};
        for (int mode = 0; mode < 2; mode++)
            FOR_ROW {
                vec d = load(dstate[mode][i] + c * LANES);
                vec old = load(before[mode][i] + c * LANES) * t->decay[mode];
                row += d * u[mode][c] + old * dr[mode][c];
                d += dr[mode][c] * t->k[i];
                dlog[mode] += d * old;
                store(dstate[mode][i] + c * LANES, d * t->decay[mode]);
            }
        rows_of[i] = row;
    }
    FOR_ROW dk[c] = sums(rows_of + c * LANES);

    /* Gates: read and write are rotated (1 - psi, psi), read times its gates. */
    float dlog_fast = sum(dlog[0]), dlog_slow = sum(dlog[1]) + dlog_fast;
    float dread_fast = h->cosine * dread[0] + h->sine * dread[1], dread_slow = h->cosine * dread[1] - h->sine * dread[0];
    float dpsi = (h->cosine * dwrite[1] - h->sine * dwrite[0]) - (h->cosine * dwrite[0] + h->sine * dwrite[1]) +
                 dread_slow * t->gate_slow - dread_fast * t->gate_fast;
    float *small = b->dz + at * rows->z_stride + 3 * h->width + h->index;
    float dslow = dlog_slow * (1 - t->slow), dfast = dlog_fast * (1 - t->fast);
    small[0] = sum(dbeta_at) * t->beta * (1 - t->beta);
    small[h->heads] = dslow;
    small[2 * h->heads] = dfast;
    small[3 * h->heads] = dread_fast * (1 - t->psi) * t->gate_fast * (1 - t->gate_fast);
    small[4 * h->heads] = dread_slow * t->psi * t->gate_slow * (1 - t->gate_slow);
    g->decay_bias[0] += dfast, g->decay_bias[1] += dslow;

    /* Flux: psi = sigmoid(out . silu(hidden) + bias), hidden = in [q, k, resonance] + bias */
    float dlogit = dpsi * t->psi * (1 - t->psi), dhidden[HIDDEN];
    vec to_resonance = {0};
    for (int c = 0; c < HIDDEN; c += LANES) {
        vec hidden = load(t->flux_hidden + c), s = sigmoid(hidden);
        vec d = dlogit * load(h->flux_out + c) * s * (1 + hidden * (1 - s));
        store(dhidden + c, d);
        add_to(g->flux_out + c, dlogit * hidden * s);
        add_to(g->flux_in_bias + c, d);
        add_to(g->flux_resonance + c, d * t->resonance);
        to_resonance += d * load(h->flux_resonance + c);
    }
    g->flux_out_bias += dlogit;
    float dresonance = sum(to_resonance), share = dresonance / h->temperature;
    g->temperature -= share * t->resonance;
    for (int j = 0; j < HIDDEN; j++) {
        const float *row = h->flux_in_rows + j * (2 * K + 1);
        FOR_ROW {
            dq[c] += load(row + c * LANES) * dhidden[j], dk[c] += load(row + K + c * LANES) * dhidden[j];
            add_to(g->flux_in[j] + c * LANES, load(t->q + c * LANES) * dhidden[j]);
            add_to(g->flux_in[j] + K + c * LANES, load(t->k + c * LANES) * dhidden[j]);
        }
    }
    FOR_ROW dk[c] += share * load(t->bilinear_q + c * LANES);
    for (int i = 0; i < K; i++) {
        rows_of[i] = splat(0);
        FOR_ROW {
            vec shared = load(t->k + c * LANES) * share;
            rows_of[i] += load(h->bilinear + i * K + c * LANES) * shared;
            add_to(g->bilinear[i] + c * LANES, shared * t->q[i]);
        }
    }
    FOR_ROW dq[c] += sums(rows_of + c * LANES);

    /* q = x / |x|, x = silu(convolution) */
    vec along_q = {0}, along_k = {0};
    FOR_ROW along_q += dq[c] * load(t->q + c * LANES), along_k += dk[c] * load(t->k + c * LANES);
    float q_part = sum(along_q), k_part = sum(along_k);
    FOR_ROW dq[c] = (dq[c] - load(t->q + c * LANES) * q_part) * t->q_scale;
    FOR_ROW dk[c] = (dk[c] - load(t->k + c * LANES) * k_part) * t->k_scale;
    float *dz = b->dz + at * rows->z_stride + h->index * K;
    const float *z = (const float *)rows->z + at * rows->z_stride + h->index * K;
    for (int part = 0; part < 3; part++)
        FOR_ROW {
            vec x = load(t->convolved[part] + c * LANES), s = sigmoid(x);
            vec d = (part == 0 ? dq : part == 1 ? dk : dv)[c] * s * (1 + x * (1 - s));
            add_to(g->conv_bias[part] + c * LANES, d);
            add_to(g->taps[part][TAPS - 1] + c * LANES, d * load(z + part * h->width + c * LANES));
            vec out = d * load(h->taps[part][TAPS - 1] + c * LANES);
            for (int j = 0; j < TAPS - 1; j++) {
                add_to(g->taps[part][j] + c * LANES, d * w->past[part][j][c]);
                out += later[part][j][c] * load(h->taps[part][TAPS - 2 - j] + c * LANES);
            }
            store(dz + part * h->width + c * LANES, out);
            for (int j = TAPS - 2; j > 0; j--) later[part][j][c] = later[part][j - 1][c];
            later[part][0][c] = d;
        }
}

struct scratch {
    memory first, dstate; /* before the block */
    vec later[3][TAPS - 1][ROW];
    memory *states;       /* after each of its tokens */
    struct group *groups;
};

/* Tokens of a block: whole chunks. */
static int64_t block_size(int64_t chunk) { return !chunk ? BLOCK : chunk < BLOCK ? BLOCK / chunk * chunk : chunk; }

/* Backward of a chunk's reading, its tokens from..to - 1 of the block that starts at `first`: from y to o, whose gradient
 * replaces o, and on to the slow memory at its end. */
static void chunk_back(const struct head *h, const struct lam_rows *rows, const struct lam_backward *b, int64_t first,
                       int64_t from, int64_t to, struct scratch *c, struct lam_gradient *gradient) {
    for (int64_t at = from; at < to; at++) {
        struct group *g = c->groups + at / GROUP;
        int t = (int)(at % GROUP);
        vec d_o[ROW];
        output_back(h, rows, b, first + at, g->o[t], g->o_scale[t], d_o, gradient);
        memcpy(g->o[t], d_o, sizeof d_o);
        for (int j = 0; j < ROW; j++) d_o[j] *= g->read[1][t];
        for (int i = 0; i < K; i++)
            for (int j = 0; j < ROW; j++) add_to(c->dstate[1][i] + j * LANES, d_o[j] * g->q[t][i]);
    }
}

/* A block of tokens forward again: with `keep` all that backward needs, else only the memories after it, in c->first. */
static void forward_block(const struct head *h, const struct lam_rows *rows, int64_t first, int64_t count,
                          struct window *window, struct scratch *c, int keep) {
    for (int64_t at = 0; at < count; at += GROUP) {
        struct group *g = c->groups + at / GROUP;
        int size = count - at < GROUP ? (int)(count - at) : GROUP;
        struct held held;
        before_memory(h, rows, first + at, size, window, g, 1);
        look_up(keep && at ? c->states[at - 1] : c->first, g->k[0], &held);
        for (int t = 0; t < size; t++) {
            float(*before)[K][K] = keep && at + t ? c->states[at + t - 1] : c->first;
            float(*after)[K][K] = keep ? c->states[at + t] : c->first;
            const float *next_k = g->k[t + 1 < size ? t + 1 : t];
            if (h->chunk)
                through_memory(g, t, next_k, before, after, &held, 1, 1);
            else
                through_memory(g, t, next_k, before, after, &held, 1, 0);
        }
        if (!h->chunk) {
            norm_scales(h, g, size);
        } else if (keep && (at + size == count || (at + size) % h->chunk == 0)) {
            for (struct group *w = c->groups + at / h->chunk * h->chunk / GROUP; w <= g; w++) {
                int waited = w < g ? GROUP : size;
                read_slow(c->states[at + size - 1][1], w->q, w->read[1], w->o, waited, w->o, w->recall);
                norm_scales(h, w, waited);
            }
        }
    }
}

/* Blocks of tokens from the last to the first; `starts` keeps the memories at the start of each. */
static void backward_text(const struct head *h, const struct lam_rows *rows, const struct lam_backward *b,
                          int64_t text, struct scratch *c, memory *starts, struct lam_gradient *g) {
    int64_t start = rows->bounds[text], end = rows->bounds[text + 1], size = block_size(h->chunk);
    int64_t blocks = (end - start + size - 1) / size;
    const float(*read)[K] = NULL; /* the slow memory at the end of the chunk */
    struct window window;
    memset(c->dstate, 0, sizeof c->dstate);
    memset(c->later, 0, sizeof c->later);
    if (rows->state)
        memcpy(c->first, rows->state + (text * h->heads + h->index) * 2 * K * K, sizeof(memory));
    else
        memset(c->first, 0, sizeof(memory));
    look_back(h, rows, text, start, &window);
    for (int64_t block = 0; block + 1 < blocks; block++) {
        memcpy(starts[block], c->first, sizeof(memory));
        forward_block(h, rows, start + block * size, size, &window, c, 0);
    }
    for (int64_t block = blocks - 1; block >= 0; block--) {
        int64_t first = start + block * size, last = block + 1 < blocks ? first + size : end;
        if (block + 1 < blocks) memcpy(c->first, starts[block], sizeof(memory));
        look_back(h, rows, text, first, &window);
        forward_block(h, rows, first, last - first, &window, c, 1);
        for (int64_t at = last - first - 1; at >= 0; at--) {
            const float(*before)[K][K] = at ? c->states[at - 1] : c->first, (*after)[K][K] = c->states[at];
            if (h->chunk && (at == last - first - 1 || (at + 1) % h->chunk == 0)) {
                read = c->states[at][1];
                chunk_back(h, rows, b, first, at / h->chunk * h->chunk, at + 1, c, g);
            }
            struct token token = pick(c->groups + at / GROUP, (int)(at % GROUP));
            look_back(h, rows, text, first + at, &window);
            if (h->chunk)
                step_back(h, rows, b, first + at, &token, before, (const float(*const[2])[K]){after[0], read},
                          c->dstate, c->later, &window, g, 1);
            else
                step_back(h, rows, b, first + at, &token, before, (const float(*const[2])[K]){after[0], after[1]},
                          c->dstate, c->later, &window, g, 0);
        }
    }
}

/* A call in pieces, which the threads that take part take one after the other. */
struct work {
    const struct lam_layer *layer;
    const struct lam_rows *rows;
    const struct lam_backward *backward; /* or NULL */
    int64_t pieces, next;
    int64_t groups;  /* of heads, in forward */
    int64_t longest; /* text, in backward */
};

static void forward_worker(void *data) {
    struct work *work = data;
    int64_t heads = work->layer->heads, prepared = 0;
    struct head *head = aligned_alloc(64, heads * sizeof *head);
    struct running *running = aligned_alloc(64, heads * sizeof *running);
    struct waiting *waiting = aligned_alloc(64, (work->layer->chunk / GROUP + 1) * sizeof *waiting);
    while (head && running && waiting) {
        int64_t piece = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED);
        if (piece >= work->pieces) break;
        int64_t text = piece / work->groups, group = piece % work->groups;
        for (; prepared < heads; prepared++) prepare(head + prepared, work->layer, prepared);
        forward_text(head, work->rows, text, group * heads / work->groups, (group + 1) * heads / work->groups, running,
                     waiting);
    }
    free(head), free(running), free(waiting);
}

static void backward_worker(void *data) {
    struct work *work = data;
    const struct lam_backward *b = work->backward;
    struct head head;
    int64_t size = block_size(work->layer->chunk);
    struct scratch *scratch = aligned_alloc(64, sizeof *scratch);
    memory *starts = aligned_alloc(64, (work->longest / size + 1) * sizeof(memory));
    memory *states = aligned_alloc(64, size * sizeof(memory));
    struct group *groups = aligned_alloc(64, size / GROUP * sizeof *groups);
    if (scratch) scratch->states = states, scratch->groups = groups;
    while (scratch && starts && states && groups) {
        int64_t piece = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED);
        if (piece >= work->pieces) break;
        int64_t index = piece / b->blocks, block = piece % b->blocks, texts = work->rows->texts;
        prepare(&head, work->layer, index);
        for (int64_t text = (block * texts + b->blocks - 1) / b->blocks; text < texts && text * b->blocks / texts == block;
             text++)
            backward_text(&head, work->rows, b, text, scratch, starts, b->gradient + block * head.heads + index);
    }
    free(scratch), free(starts), free(states), free(groups);
}

/* The signature of GOMP_parallel: runs a function on a team of threads. torch's own OpenMP runtime is handed in, so that
 * no second team of threads competes for the cores. */
typedef void (*parallel)(void (*)(void *), void *, unsigned, unsigned);

/* The worker on as many threads as there are pieces of work, at most `threads`; on this one where there is no team. */
static void on_team(void (*worker)(void *), void *work, int64_t pieces, parallel team, int64_t threads) {
    if (threads > pieces) threads = pieces;
    if (team && threads > 1)
        team(worker, work, (unsigned)threads, 0);
    else
        worker(work);
}

static int64_t run(struct work *work, void (*worker)(void *), parallel team, int64_t threads) {
    on_team(worker, work, work->pieces, team, threads);
    return work->next < work->pieces; /* no thread got its memory */
}

int64_t JOIN(lam_forward, LAM_SUFFIX)(const struct lam_layer *layer, const struct lam_rows *rows, parallel team,
                                      int64_t threads) {
    int64_t groups = rows->texts ? 2 * threads / rows->texts : 1; /* of heads; one, where there are texts enough */
    groups = !team || groups < 1 ? 1 : groups < layer->heads ? groups : layer->heads;
    struct work work = {layer, rows, NULL, rows->texts * groups, 0, groups, 0};
    return run(&work, forward_worker, team, threads);
}

int64_t JOIN(lam_backward, LAM_SUFFIX)(const struct lam_layer *layer, const struct lam_rows *rows,
                                       const struct lam_backward *backward, parallel team, int64_t threads) {
    struct work work = {layer, rows, backward, layer->heads * backward->blocks, 0, 0, 0};
    for (int64_t i = 0; i < rows->texts; i++)
        if (rows->bounds[i + 1] - rows->bounds[i] > work.longest) work.longest = rows->bounds[i + 1] - rows->bounds[i];
    return run(&work, backward_worker, team, threads);
}

int64_t JOIN(lam_gradient_size, LAM_SUFFIX)(void) { return sizeof(struct lam_gradient) / sizeof(float); }
