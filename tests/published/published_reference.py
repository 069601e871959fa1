"""The forward pass of the published checkpoints in plain NumPy, float64: one text, one head, one chunk at a time.

Written from the equations alone, to have something that shares no line with the model it is compared with.
"""

import math

import numpy as np

erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x):
    return x * 0.5 * (1 + erf(x / math.sqrt(2)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def layer_norm(x, get, name):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * get(name + ".weight") + get(name + ".bias")


def convolution(z, weight, bias):
    """y[t] = b + sum_j w[j] z[t - 2 + j], j = 0..3, with z zero outside the text; z [L, D], weight [D, 1, 4]."""
    y = np.zeros_like(z) + bias
    for t in range(len(z)):
        for j in range(4):
            if 0 <= t - 2 + j < len(z):
                y[t] += weight[:, 0, j] * z[t - 2 + j]
    return y


def chunk_matrices(q, k, v, beta):
    """u, w, P and beta v of one head and chunk; q, k, v [C, K], beta [C]."""
    vb, kb = beta[:, None] * v, beta[:, None] * k
    a = -np.tril(kb @ k.T, -1)
    t = np.eye(len(q)) + a + np.tril(a @ a.T, -1)
    return t @ vb, t @ kb, np.tril(q @ k.T), vb


def flux(get, k, u, head, chunk, heads, chunks):
    bilinear = get("resonance_flux.W_bilinear")
    bilinear = bilinear[0] if bilinear.ndim == 3 else bilinear
    mean_k, mean_u = k.mean(0), u.mean(0)
    s = mean_k @ bilinear @ mean_u / get("resonance_flux.temp")[(head * chunks + chunk) % heads]
    features = np.concatenate([mean_k, mean_u, [s]])
    hidden = silu(get("resonance_flux.flux_net.0.weight") @ features + get("resonance_flux.flux_net.0.bias"))
    psi = sigmoid(get("resonance_flux.flux_net.2.weight") @ hidden + get("resonance_flux.flux_net.2.bias"))
    return float(np.clip(psi[0], 0.01, 0.99))


def normalised(state):
    return state / (np.sqrt((state**2).sum()) + 1e-8)


def memory(x, get, heads, rule):
    """x [T, D] -> [T, D]; get: name of a memory layer's tensor -> array."""
    real = len(x)
    if real >= 64 and real % 32:
        x = np.concatenate([x, np.zeros((32 - real % 32, x.shape[1]))])
    length, width = len(x), x.shape[1] // heads
    q, k, v = (
        silu(convolution(x @ get(f"{n}_proj.weight").T, get(f"{n}_conv1d.conv.weight"), get(f"{n}_conv1d.conv.bias")))
        for n in "qkv"
    )
    beta, fast_gate, slow_gate = (
        sigmoid(x @ get(f"{n}.weight").T) for n in ("b_proj", "fast_gate_proj", "slow_gate_proj")
    )
    fast_decay, slow_decay = (
        sigmoid(x @ get(f"{n}_decay_proj.weight").T + get(f"{n}_decay_proj.bias") + get(f"{n}_decay_bias"))
        for n in ("fast", "slow")
    )
    full = {"flat": 128, "main": 32}[rule]
    chunk = full if length >= full and length % full == 0 else length
    chunks = length // chunk
    o = np.zeros((heads, length, width))
    states = [[np.zeros((width, width)), np.zeros((width, width))] for _ in range(heads)]
    for n in range(chunks):
        at = slice(n * chunk, (n + 1) * chunk)
        psis, kept = [], []
        for h in range(heads):
            columns = slice(h * width, (h + 1) * width)
            qc, kc, vc = q[at, columns], k[at, columns], v[at, columns]
            qc, kc = (y / np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-12) for y in (qc, kc))
            u, w, p, vb = chunk_matrices(qc, kc, vc, beta[at, h])
            gate_f, gate_s = fast_gate[at, h, None], slow_gate[at, h, None]
            if rule == "flat":
                o[h, at] = 0.1 * gate_f * (p @ vb) + 0.9 * gate_s * (p @ u)
                continue
            psi = flux(get, kc, u, h, n, heads, chunks)
            fast = states[h][0] * fast_decay[at, h].mean() * (1 - 0.1 * psi)
            slow = states[h][1] * slow_decay[at, h].mean() * (1 - 0.05 * psi)
            u_f, u_s = u - w @ normalised(fast), u - w @ normalised(slow)
            o_f = gate_f * (qc @ normalised(fast) + p @ u_f)
            o_s = gate_s * (qc @ normalised(slow) + p @ u_s)
            a = 0.5 + 0.3 * psi
            o[h, at] = a * o_f + (1 - a) * o_s
            psis.append(psi)
            kept.append((fast + kc.T @ u_f, slow + kc.T @ u_s))
        for h, (fast, slow) in enumerate(kept):
            xi = 0.05 + 0.1 * float(np.mean(psis))
            mixed = fast + xi * psis[h] * slow, slow + xi * (1 - psis[h]) * fast
            states[h] = [normalised(s) for s in mixed]
    o = o / np.sqrt((o**2).mean(-1, keepdims=True) + 1e-5) * get("o_norm.weight")
    o = np.concatenate(list(o), axis=1) * sigmoid(x @ get("g_proj.weight").T)
    return (o @ get("o_proj.weight").T)[:real]


def hidden_states(weights, ids, heads, rule):
    """The embeddings and the output of each layer, [T, D] each, of one text.

    weights: name as in the published single file -> array; ids: the text's token ids.
    """

    def get(name):
        return np.asarray(weights[name], dtype=np.float64)

    words = get("embeddings.word_embeddings.weight")[ids]
    x = (
        words
        + get("embeddings.position_embeddings.weight")[: len(ids)]
        + get("embeddings.token_type_embeddings.weight")[0]
    )
    states = [layer_norm(x, get, "embeddings.LayerNorm")]
    layers = len({name.split(".")[1] for name in weights if name.startswith("deltanet_layers.")})
    for i in range(layers):
        x = states[-1]
        x = layer_norm(
            x + memory(x, lambda name, i=i: get(f"deltanet_layers.{i}.{name}"), heads, rule), get, f"deltanet_norms.{i}"
        )
        f = gelu(gelu(x @ get(f"deltanet_ffns.{i}.dense.weight").T + get(f"deltanet_ffns.{i}.dense.bias")))
        out = f"teacher_model.encoder.layer.{i}.output.dense"
        states.append(layer_norm(x + f @ get(out + ".weight").T + get(out + ".bias"), get, f"ffn_norms.{i}"))
    return states


def embedding(weights, ids, heads, rule):
    """The embedding [D] of one text: mean over its tokens, L2-normalised."""
    pooled = hidden_states(weights, ids, heads, rule)[-1].mean(0)
    return pooled / np.linalg.norm(pooled)
