/* Copyright 2026 The LAM authors. Licensed under the Apache License, Version 2.0.
 *
 * The inside of one LAM memory layer, forward and backward: from the projections of x to the input of the output
 * projection (convolution, SiLU, normalisation, flux, both memories, norm and gate; docs/ALGORITHM.md has the
 * equations). Token by token, one (text, head) after the other, with both memories in the first-level cache.
 *
 * Head size 32, kernel of 4 taps, flux of 16 hidden units; the callers check. All numbers float32. The file is compiled
 * once per instruction set with another LAM_SUFFIX; vectors are the compiler's own, of 16 floats, whatever registers
 * there are.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define K 32
#define TAPS 4
#define HIDDEN 16
#define BLOCK 64 /* tokens whose states backward keeps at once */

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#ifndef LAM_SUFFIX
#define LAM_SUFFIX _plain
#endif

typedef float vec __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(64), aligned(4)));
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
};

struct lam_rows {
    const float *z;        /* [T][z_stride]: q, k, v of all heads, then beta, slow, fast, gate_fast, gate_slow */
    int64_t z_stride;
    const float *gate;     /* [T][D] logits of the output gate, or NULL */
    float *y;              /* [T][D] */
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
static inline vec splat(float x) { return (vec){0} + x; }

static inline float sum(vec x) {
    x += __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    x += __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    x += __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    return x[0] + x[1];
}

/* The sums of 16 vectors as one vector; x is overwritten. */
static inline vec sums(vec *x) {
    for (int i = 0; i < 16; i += 2)
        x[i / 2] = __builtin_shufflevector(x[i], x[i + 1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                   __builtin_shufflevector(x[i], x[i + 1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    for (int i = 0; i < 8; i += 2)
        x[i / 2] = __builtin_shufflevector(x[i], x[i + 1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
                   __builtin_shufflevector(x[i], x[i + 1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    for (int i = 0; i < 4; i += 2)
        x[i / 2] = __builtin_shufflevector(x[i], x[i + 1], 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
                   __builtin_shufflevector(x[i], x[i + 1], 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
    return __builtin_shufflevector(x[0], x[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           __builtin_shufflevector(x[0], x[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

static inline vec choose(ivec mask, vec yes, vec no) { return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask)); }

/* exp(x), to about 2 units in the last place, clamped to [-87, 88]; NaN stays NaN. */
static inline vec exponential(vec x) {
    x = choose(x > splat(88.0f), splat(88.0f), x);
    x = choose(x < splat(-87.0f), splat(-87.0f), x);
    vec shifted = x * 1.44269504f + 12582912.0f;
    vec n = shifted - 12582912.0f;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    ivec bits = (__builtin_convertvector(n, ivec) + 127) << 23;
    return p * (vec)bits;
}

static inline vec sigmoid(vec x) { return 1.0f / (1.0f + exponential(-x)); }

/* What one head needs of its layer, in the order in which it is used. */
struct head {
    float taps[3][TAPS][K] __attribute__((aligned(64))), conv_bias[3][K];
    float flux_in[2 * K][HIDDEN], flux_resonance[HIDDEN], flux_in_bias[HIDDEN], flux_out[HIDDEN], norm_weight[K];
    const float *bilinear, *flux_in_rows;
    float fast_bias, slow_bias, temperature, flux_out_bias, eps, cosine, sine;
    int64_t index, heads, width;
};

static void prepare(struct head *h, const struct lam_layer *p, int64_t index) {
    h->index = index, h->heads = p->heads, h->width = p->heads * K;
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

/* All that forward computes for a token on the way; backward reads it. */
struct token {
    float convolved[3][K] __attribute__((aligned(64))), q[K], k[K], v[K], error[2][K], recall[2][K], o[K];
    float bilinear_q[K], flux_hidden[HIDDEN]; /* q' W; before the SiLU */
    float q_scale, k_scale, o_scale, resonance;
    float beta, slow, fast, gate_fast, gate_slow, psi, decay[2], write[2], read[2];
};

/* The last inputs of the convolution, oldest first. */
struct window { vec past[3][TAPS - 1][2]; };

/* One token: z its projections, before and after the memories (may be the same), t what it leaves, y its output. */
static inline __attribute__((always_inline)) void step(const struct head *h, const float *z, struct window *w,
                                                       const memory before, memory after, struct token *t,
                                                       const float *gate, float *y) {
    for (int part = 0; part < 3; part++)
        for (int half = 0; half < 2; half++) {
            vec now = load(z + part * h->width + h->index * K + half * 16);
            vec x = load(h->conv_bias[part] + half * 16) + load(h->taps[part][TAPS - 1] + half * 16) * now;
            for (int j = 0; j < TAPS - 1; j++) x += load(h->taps[part][j] + half * 16) * w->past[part][j][half];
            for (int j = 0; j < TAPS - 2; j++) w->past[part][j][half] = w->past[part][j + 1][half];
            w->past[part][TAPS - 2][half] = now;
            store(t->convolved[part] + half * 16, x);
            x *= sigmoid(x);
            store((part == 0 ? t->q : part == 1 ? t->k : t->v) + half * 16, x);
        }
    vec q0 = load(t->q), q1 = load(t->q + 16), k0 = load(t->k), k1 = load(t->k + 16);
    t->q_scale = 1.0f / sqrtf(sum(q0 * q0 + q1 * q1) + 1e-6f);
    t->k_scale = 1.0f / sqrtf(sum(k0 * k0 + k1 * k1) + 1e-6f);
    q0 *= t->q_scale, q1 *= t->q_scale, k0 *= t->k_scale, k1 *= t->k_scale;
    store(t->q, q0), store(t->q + 16, q1), store(t->k, k0), store(t->k + 16, k1);

    vec a0 = {0}, a1 = {0}, b0 = {0}, b1 = {0}, h0 = load(h->flux_in_bias), h1 = {0}, h2 = {0}, h3 = {0};
    for (int i = 0; i < K; i += 2) {
        a0 += load(h->bilinear + i * K) * t->q[i];
        a1 += load(h->bilinear + i * K + 16) * t->q[i];
        b0 += load(h->bilinear + (i + 1) * K) * t->q[i + 1];
        b1 += load(h->bilinear + (i + 1) * K + 16) * t->q[i + 1];
        h0 += load(h->flux_in[i]) * t->q[i];
        h1 += load(h->flux_in[i + 1]) * t->q[i + 1];
        h2 += load(h->flux_in[K + i]) * t->k[i];
        h3 += load(h->flux_in[K + i + 1]) * t->k[i + 1];
    }
    a0 += b0, a1 += b1;
    store(t->bilinear_q, a0), store(t->bilinear_q + 16, a1);
    t->resonance = sum(a0 * k0 + a1 * k1) / h->temperature;
    vec hidden = (h0 + h1) + (h2 + h3) + load(h->flux_resonance) * t->resonance;
    store(t->flux_hidden, hidden);

    const float *small = z + 3 * h->width + h->index;
    vec logits = {small[0], small[h->heads] + h->slow_bias, small[2 * h->heads] + h->fast_bias, small[3 * h->heads],
                  small[4 * h->heads], sum(hidden * sigmoid(hidden) * load(h->flux_out)) + h->flux_out_bias};
    vec s = sigmoid(logits);
    t->beta = s[0], t->slow = s[1], t->fast = s[2], t->gate_fast = s[3], t->gate_slow = s[4], t->psi = s[5];
    t->decay[0] = t->slow * t->fast, t->decay[1] = t->slow;
    float write_fast = 1 - t->psi, read_fast = t->gate_fast * (1 - t->psi), read_slow = t->gate_slow * t->psi;
    t->write[0] = h->cosine * write_fast - h->sine * t->psi, t->write[1] = h->sine * write_fast + h->cosine * t->psi;
    t->read[0] = h->cosine * read_fast - h->sine * read_slow, t->read[1] = h->sine * read_fast + h->cosine * read_slow;

    vec o0 = {0}, o1 = {0};
    for (int mode = 0; mode < 2; mode++) {
        const float(*old)[K] = before[mode];
        float(*new)[K] = after[mode], decay = t->decay[mode];
        vec r0 = {0}, r1 = {0}, r2 = {0}, r3 = {0};
        for (int i = 0; i < K; i += 2) {
            r0 += load(old[i]) * t->k[i];
            r1 += load(old[i] + 16) * t->k[i];
            r2 += load(old[i + 1]) * t->k[i + 1];
            r3 += load(old[i + 1] + 16) * t->k[i + 1];
        }
        vec e0 = t->write[mode] * load(t->v) - decay * (r0 + r2);
        vec e1 = t->write[mode] * load(t->v + 16) - decay * (r1 + r3);
        store(t->error[mode], e0), store(t->error[mode] + 16, e1);
        e0 *= t->beta, e1 *= t->beta;
        r0 = r1 = r2 = r3 = splat(0);
        for (int i = 0; i < K; i++) {
            vec n0 = load(old[i]) * decay + e0 * t->k[i];
            vec n1 = load(old[i] + 16) * decay + e1 * t->k[i];
            store(new[i], n0), store(new[i] + 16, n1);
            r0 += n0 * t->q[i], r1 += n1 * t->q[i];
        }
        store(t->recall[mode], r0), store(t->recall[mode] + 16, r1);
        o0 += r0 * t->read[mode], o1 += r1 * t->read[mode];
    }
    store(t->o, o0), store(t->o + 16, o1);
    t->o_scale = 1.0f / sqrtf(sum(o0 * o0 + o1 * o1) * (1.0f / K) + h->eps);
    if (!y) return;
    o0 *= t->o_scale * load(h->norm_weight), o1 *= t->o_scale * load(h->norm_weight + 16);
    if (gate) o0 *= sigmoid(load(gate)), o1 *= sigmoid(load(gate + 16));
    store(y, o0), store(y + 16, o1);
}

/* The inputs of the convolution ahead of token `at` of a text that starts at `start`. */
static void look_back(const struct head *h, const struct lam_rows *rows, int64_t text, int64_t at, struct window *w) {
    int64_t start = rows->bounds[text];
    for (int j = 0; j < TAPS - 1; j++) {
        int64_t token = at - (TAPS - 1) + j;
        const float *from = NULL;
        if (token >= start)
            from = rows->z + token * rows->z_stride;
        else if (rows->conv)
            from = rows->conv + (text * (TAPS - 1) + (token - start + TAPS - 1)) * 3 * h->width;
        for (int part = 0; part < 3; part++)
            for (int half = 0; half < 2; half++)
                w->past[part][j][half] = from ? load(from + part * h->width + h->index * K + half * 16) : splat(0);
    }
}

static void forward_text(const struct head *h, const struct lam_rows *rows, int64_t text) {
    memory state;
    struct window window;
    struct token token;
    float *kept = rows->state ? rows->state + (text * h->heads + h->index) * 2 * K * K : NULL;
    if (kept)
        memcpy(state, kept, sizeof state);
    else
        memset(state, 0, sizeof state);
    look_back(h, rows, text, rows->bounds[text], &window);
    for (int64_t t = rows->bounds[text]; t < rows->bounds[text + 1]; t++) {
        int64_t place = t * h->width + h->index * K;
        step(h, rows->z + t * rows->z_stride, &window, state, state, &token, rows->gate ? rows->gate + place : NULL,
             rows->y + place);
    }
    if (kept) memcpy(kept, state, sizeof state);
    if (rows->conv)
        for (int part = 0; part < 3; part++)
            for (int half = 0; half < 2; half++)
                for (int j = 0; j < TAPS - 1; j++)
                    store(rows->conv + (text * (TAPS - 1) + j) * 3 * h->width + part * h->width + h->index * K +
                              half * 16, window.past[part][j][half]);
}

/* Backward of one token. dstate: gradient of the memories after it, replaced by that of the memories before it.
 * later: gradients of the convolution's outputs of the next three tokens, nearest first. */
static void step_back(const struct head *h, const struct lam_rows *rows, const struct lam_backward *b, int64_t at,
                      const struct token *t, const memory before, const memory after, memory dstate,
                      vec later[3][TAPS - 1][2], const struct window *w, struct lam_gradient *g) {
    int64_t place = at * h->width + h->index * K;
    /* y = norm_weight * o * o_scale * sigmoid(gate) */
    vec dn[2], n[2], dot = {0};
    for (int half = 0; half < 2; half++) {
        vec dy = load(b->dy + place + half * 16), weight = load(h->norm_weight + half * 16);
        n[half] = load(t->o + half * 16) * t->o_scale;
        if (rows->gate) {
            vec s = sigmoid(load(rows->gate + place + half * 16));
            store(b->dgate + place + half * 16, dy * n[half] * weight * s * (1 - s));
            dy *= s;
        }
        add_to(g->norm_weight + half * 16, dy * n[half]);
        dn[half] = dy * weight;
        dot += dn[half] * n[half];
    }
    float mean = sum(dot) * (1.0f / K);
    vec do0 = t->o_scale * (dn[0] - n[0] * mean), do1 = t->o_scale * (dn[1] - n[1] * mean);

    /* o = sum read (q' after); after = decay before + k u', u = beta (write v - k' decay before) */
    float dread[2];
    vec da[2][2], du[2][2], dv0 = {0}, dv1 = {0}, rows_of[K], dq[2], dk[2];
    for (int mode = 0; mode < 2; mode++) {
        dread[mode] = sum(do0 * load(t->recall[mode]) + do1 * load(t->recall[mode] + 16));
        da[mode][0] = do0 * t->read[mode], da[mode][1] = do1 * t->read[mode];
        du[mode][0] = du[mode][1] = splat(0);
    }
    for (int i = 0; i < K; i++) {
        vec row = {0};
        for (int mode = 0; mode < 2; mode++)
            for (int half = 0; half < 2; half++) {
                vec d = load(dstate[mode][i] + half * 16) + da[mode][half] * t->q[i];
                store(dstate[mode][i] + half * 16, d);
                du[mode][half] += d * t->k[i];
                row += load(after[mode][i] + half * 16) * da[mode][half];
            }
        rows_of[i] = row;
    }
    dq[0] = sums(rows_of), dq[1] = sums(rows_of + 16);
    vec dbeta_at = {0}, u[2][2], dr[2][2], dlog[2] = {{0}, {0}};
    float dwrite[2];
    for (int mode = 0; mode < 2; mode++) {
        vec dw = {0};
        for (int half = 0; half < 2; half++) {
            vec e = load(t->error[mode] + half * 16), v = load(t->v + half * 16);
            dbeta_at += du[mode][half] * e;
            u[mode][half] = e * t->beta;
            du[mode][half] *= t->beta;
            dw += du[mode][half] * v;
            dr[mode][half] = -du[mode][half];
        }
        dwrite[mode] = sum(dw);
        dv0 += du[mode][0] * t->write[mode], dv1 += du[mode][1] * t->write[mode];
    }
    for (int i = 0; i < K; i++) {
        vec row = {0};
        for (int mode = 0; mode < 2; mode++)
            for (int half = 0; half < 2; half++) {
                vec d = load(dstate[mode][i] + half * 16);
                vec old = load(before[mode][i] + half * 16) * t->decay[mode];
                row += d * u[mode][half] + old * dr[mode][half];
                d += dr[mode][half] * t->k[i];
                dlog[mode] += d * old;
                store(dstate[mode][i] + half * 16, d * t->decay[mode]);
            }
        rows_of[i] = row;
    }
    dk[0] = sums(rows_of), dk[1] = sums(rows_of + 16);

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
    float dlogit = dpsi * t->psi * (1 - t->psi);
    vec hidden = load(t->flux_hidden), s = sigmoid(hidden);
    vec dhidden = dlogit * load(h->flux_out) * s * (1 + hidden * (1 - s));
    add_to(g->flux_out, dlogit * hidden * s);
    add_to(g->flux_in_bias, dhidden);
    add_to(g->flux_resonance, dhidden * t->resonance);
    g->flux_out_bias += dlogit;
    float dresonance = sum(dhidden * load(h->flux_resonance));
    g->temperature -= dresonance * t->resonance / h->temperature;
    float share = dresonance / h->temperature;
    vec q0 = load(t->q), q1 = load(t->q + 16), k0 = load(t->k), k1 = load(t->k + 16);
    for (int j = 0; j < HIDDEN; j++) {
        const float *row = h->flux_in_rows + j * (2 * K + 1);
        dq[0] += load(row) * dhidden[j], dq[1] += load(row + 16) * dhidden[j];
        dk[0] += load(row + 32) * dhidden[j], dk[1] += load(row + 48) * dhidden[j];
        add_to(g->flux_in[j], q0 * dhidden[j]), add_to(g->flux_in[j] + 16, q1 * dhidden[j]);
        add_to(g->flux_in[j] + 32, k0 * dhidden[j]), add_to(g->flux_in[j] + 48, k1 * dhidden[j]);
    }
    dk[0] += share * load(t->bilinear_q), dk[1] += share * load(t->bilinear_q + 16);
    vec shared0 = k0 * share, shared1 = k1 * share;
    for (int i = 0; i < K; i++) {
        const float *row = h->bilinear + i * K;
        rows_of[i] = load(row) * shared0 + load(row + 16) * shared1;
        add_to(g->bilinear[i], shared0 * t->q[i]), add_to(g->bilinear[i] + 16, shared1 * t->q[i]);
    }
    dq[0] += sums(rows_of), dq[1] += sums(rows_of + 16);

    /* q = x / |x|, x = silu(convolution) */
    float along_q = sum(dq[0] * q0 + dq[1] * q1), along_k = sum(dk[0] * k0 + dk[1] * k1);
    vec dx[3][2] = {{(dq[0] - q0 * along_q) * t->q_scale, (dq[1] - q1 * along_q) * t->q_scale},
                    {(dk[0] - k0 * along_k) * t->k_scale, (dk[1] - k1 * along_k) * t->k_scale},
                    {dv0, dv1}};
    float *dz = b->dz + at * rows->z_stride + h->index * K;
    const float *z = rows->z + at * rows->z_stride + h->index * K;
    for (int part = 0; part < 3; part++)
        for (int half = 0; half < 2; half++) {
            vec x = load(t->convolved[part] + half * 16);
            s = sigmoid(x);
            vec d = dx[part][half] * s * (1 + x * (1 - s));
            add_to(g->conv_bias[part] + half * 16, d);
            add_to(g->taps[part][TAPS - 1] + half * 16, d * load(z + part * h->width + half * 16));
            vec out = d * load(h->taps[part][TAPS - 1] + half * 16);
            for (int j = 0; j < TAPS - 1; j++) {
                add_to(g->taps[part][j] + half * 16, d * w->past[part][j][half]);
                out += later[part][j][half] * load(h->taps[part][TAPS - 2 - j] + half * 16);
            }
            store(dz + part * h->width + half * 16, out);
            for (int j = TAPS - 2; j > 0; j--) later[part][j][half] = later[part][j - 1][half];
            later[part][0][half] = d;
        }
}

struct scratch {
    memory first, dstate, states[BLOCK]; /* before the block; after each of its tokens */
    struct token tokens[BLOCK];
    struct window window[BLOCK]; /* ahead of each token */
    vec later[3][TAPS - 1][2];
};

/* Blocks of tokens from the last to the first; `starts` keeps the memories at the start of each. */
static void backward_text(const struct head *h, const struct lam_rows *rows, const struct lam_backward *b,
                          int64_t text, struct scratch *c, memory *starts, struct lam_gradient *g) {
    int64_t start = rows->bounds[text], end = rows->bounds[text + 1], blocks = (end - start + BLOCK - 1) / BLOCK;
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
        for (int64_t t = start + block * BLOCK; t < start + (block + 1) * BLOCK; t++)
            step(h, rows->z + t * rows->z_stride, &window, c->first, c->first, c->tokens, NULL, NULL);
    }
    for (int64_t block = blocks - 1; block >= 0; block--) {
        int64_t first = start + block * BLOCK, last = block + 1 < blocks ? first + BLOCK : end;
        if (block + 1 < blocks) {
            memcpy(c->first, starts[block], sizeof(memory));
            look_back(h, rows, text, first, &window);
        }
        for (int64_t t = first; t < last; t++) {
            c->window[t - first] = window;
            step(h, rows->z + t * rows->z_stride, &window, t == first ? c->first : c->states[t - first - 1],
                 c->states[t - first], c->tokens + (t - first), NULL, NULL);
        }
        for (int64_t t = last - 1; t >= first; t--)
            step_back(h, rows, b, t, c->tokens + (t - first), t == first ? c->first : c->states[t - first - 1],
                      c->states[t - first], c->dstate, c->later, c->window + (t - first), g);
    }
}

/* A call in pieces, which the threads that take part take one after the other. */
struct work {
    const struct lam_layer *layer;
    const struct lam_rows *rows;
    const struct lam_backward *backward; /* or NULL */
    int64_t pieces, next, longest;
};

static void forward_worker(void *data) {
    struct work *work = data;
    struct head head = {.index = -1};
    for (;;) {
        int64_t piece = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED);
        if (piece >= work->pieces) return;
        int64_t index = piece / work->rows->texts;
        if (head.index != index || !head.heads) prepare(&head, work->layer, index);
        forward_text(&head, work->rows, piece % work->rows->texts);
    }
}

static void backward_worker(void *data) {
    struct work *work = data;
    const struct lam_backward *b = work->backward;
    struct head head;
    struct scratch *scratch = aligned_alloc(64, sizeof *scratch);
    memory *starts = aligned_alloc(64, (work->longest / BLOCK + 1) * sizeof(memory));
    while (scratch && starts) {
        int64_t piece = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED);
        if (piece >= work->pieces) break;
        int64_t index = piece / b->blocks, block = piece % b->blocks, texts = work->rows->texts;
        prepare(&head, work->layer, index);
        for (int64_t text = (block * texts + b->blocks - 1) / b->blocks; text < texts && text * b->blocks / texts == block;
             text++)
            backward_text(&head, work->rows, b, text, scratch, starts, b->gradient + block * head.heads + index);
    }
    free(scratch), free(starts);
}

/* The signature of GOMP_parallel: runs a function on a team of threads. torch's own OpenMP runtime is handed in, so that
 * no second team of threads competes for the cores. */
typedef void (*parallel)(void (*)(void *), void *, unsigned, unsigned);

static int64_t run(struct work *work, void (*worker)(void *), parallel team, int64_t threads) {
    if (threads > work->pieces) threads = work->pieces;
    if (team && threads > 1)
        team(worker, work, (unsigned)threads, 0);
    else
        worker(work);
    return work->next < work->pieces; /* no thread got its memory */
}

int64_t JOIN(lam_forward, LAM_SUFFIX)(const struct lam_layer *layer, const struct lam_rows *rows, parallel team,
                                      int64_t threads) {
    struct work work = {layer, rows, NULL, layer->heads * rows->texts, 0, 0};
    return run(&work, forward_worker, team, threads);
}

int64_t JOIN(lam_backward, LAM_SUFFIX)(const struct lam_layer *layer, const struct lam_rows *rows,
                                       const struct lam_backward *backward, parallel team, int64_t threads) {
    struct work work = {layer, rows, backward, layer->heads * backward->blocks, 0, 0};
    for (int64_t i = 0; i < rows->texts; i++)
        if (rows->bounds[i + 1] - rows->bounds[i] > work.longest) work.longest = rows->bounds[i + 1] - rows->bounds[i];
    return run(&work, backward_worker, team, threads);
}

int64_t JOIN(lam_gradient_size, LAM_SUFFIX)(void) { return sizeof(struct lam_gradient) / sizeof(float); }
