"""LAM as an ONNX graph, one function a block: embeddings, projections, convolution, flux, memory rule, feed-forward.

Every text may have its own length, and all lengths go through one graph. The real tokens of a row are moved to the
left before the first layer, so that holes in a mask and the side of the padding do not exist for the arithmetic; what
follows them writes nothing and forgets nothing.

The memory rule is the chunked form of docs/ALGORITHM.md. All that needs no state is done for all chunks at once; a
Scan carries the state from chunk to chunk. Shapes: B batch, T tokens, P tokens filled up to whole chunks, S chunks,
C tokens of a chunk, H heads, K = V head width, D = H K, M = 2 modes. Inside the rule chunks come first, [S, M, B, H, C,
...], which is what Scan walks over and what lets a product take all matrices of a step at once.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import onnx

from .onnx_graph import Graph, Value
from .onnx_products import products as products_of

CHUNK = 16  # most tokens of a chunk of the rule: the state costs once a chunk, the inside of one grows with its square
BLOCK = 8  # inverses are squared only inside blocks of this width, see `unit_lower_inverse`


def most_of_chunk(two_way_chunk: int | None) -> int:
    """The largest number of tokens of a chunk of the rule: chunks end where two-way chunks end."""
    if two_way_chunk is None or two_way_chunk % CHUNK == 0:
        return CHUNK
    return max(size for size in range(1, BLOCK + 1) if two_way_chunk % size == 0)


@dataclass
class Chunks:
    """How the columns of a batch are cut into chunks of the rule.

    Where a batch ends before the first two-way chunk does, its columns are shared out evenly, so that little has to be
    filled up; 17 columns are two chunks of nine. A text's numbers then depend on its batch in the last digit, which
    int8 would now and then round to another step: there, chunks are always of the same size.

    Attributes:
        most: the largest number of tokens of a chunk.
        size: [1] int64, C.
        padding: [1] int64, P - T.
    """

    most: int
    size: Value
    padding: Value

    @classmethod
    def of(cls, graph: Graph, time: Value, two_way_chunk: int | None, always_the_same: bool = False) -> Chunks:
        """For `time` [1] columns."""
        most = most_of_chunk(two_way_chunk)
        if always_the_same:
            return cls(most, graph.sizes(most), graph.op("Mod", graph.sizes(0) - time, graph.sizes(most)))
        one = graph.sizes(1)
        columns = graph.op("Max", time, one)
        count = graph.op("Div", columns + graph.sizes(most - 1), graph.sizes(most))
        size = graph.op("Div", columns + count - one, count)
        if two_way_chunk is not None:
            early = graph.op("LessOrEqual", time, graph.sizes(two_way_chunk))
            size = graph.op("Where", early, size, graph.sizes(most))
        return cls(most, size, graph.op("Mod", graph.sizes(0) - time, size))

    def corner(self, graph: Graph, matrix: np.ndarray) -> Value:
        """The first C rows and columns of a constant matrix [most, most]."""
        ends = graph.concat([self.size, self.size], 0)
        return graph.op("Slice", graph.constant(matrix.astype(np.float32)), np.array([0, 0]), ends, np.array([0, 1]))


class Products(Protocol):
    """How the large matrices are stored and multiplied: in float32, float16 or int8.

    Attributes:
        rounds: whether a product rounds what goes into it.
    """

    rounds: bool

    def linear(self, x: Value, name: str, weight: np.ndarray) -> Value:
        """x [..., in] times the transposed weight [out, in]."""

    def lookup(self, ids: Value, name: str, table: np.ndarray) -> Value:
        """The rows `ids` of a table, float32."""


@dataclass
class Texts:
    """Where the tokens of a batch are, once the real ones have been moved to the left.

    Attributes:
        chunks: of the rule.
        batch: [1], B.
        time: [1], T.
        lengths: [B], the number of real tokens.
        real: [S, 1, B, 1, C] float32, 1 for real tokens.
        rank: [B T], the place of each token after the move, in the flattened batch.
        mask: [B, T, 1] float32, 1 for real tokens before the move.
    """

    chunks: Chunks
    batch: Value
    time: Value
    lengths: Value
    real: Value
    rank: Value
    mask: Value


@dataclass
class State:
    """The state of one layer: memory [M, B, H, K, V] and the last inputs of the convolution [B, taps - 1, 3 D]."""

    memory: Value
    conv: Value


def to_left(
    graph: Graph, two_way_chunk: int | None, same_chunks: bool, input_ids: Value, attention_mask: Value
) -> tuple[Texts, Value, Value]:
    """Where the tokens are, the ids [B, T] with the real ones on the left, and the place of each column in a text."""
    mask = attention_mask.cast(np.bool_).cast(np.int64)
    batch = mask.size(0)
    time = mask.size(1)
    index = graph.op("Range", np.int64(0), graph.op("Squeeze", time), np.int64(1))  # [T]
    lengths = graph.sum(mask, 1)  # [B, 1]
    rank = graph.op("CumSum", mask, np.int64(1)) - graph.constant(np.int64(1))
    # The absent tokens all go to one place after the last.
    target = graph.op("Where", mask.cast(np.bool_), rank, time)
    places = graph.op("Expand", index, graph.concat([batch, time], 0))
    room = graph.op("Expand", np.int64(0), graph.concat([batch, time + graph.sizes(1)], 0))
    source = graph.op("ScatterElements", room, target, places, axis=1).slice(0, time, 1)
    first = graph.op("Range", np.int64(0), graph.op("Squeeze", batch), np.int64(1)).add_axis(1) * time  # [B, 1]
    rank = (graph.op("Max", rank, np.int64(0)) + first).reshape(-1)
    chunks = Chunks.of(graph, time, two_way_chunk, same_chunks)
    everywhere = graph.op("Range", np.int64(0), graph.op("Squeeze", time + chunks.padding), np.int64(1))
    real = graph.op("Less", everywhere, lengths).cast(np.float32)  # [B, P]
    real = real.reshape(0, -1, chunks.size).transpose(1, 0, 2).add_axis(1, 3)  # [S, 1, B, 1, C]
    texts = Texts(chunks, batch, time, lengths, real, rank, mask.cast(np.float32).add_axis(2))
    ids = graph.op("GatherElements", input_ids, source, axis=1)
    return texts, ids, index


def embeddings(
    graph: Graph, products: Products, weights: dict[str, np.ndarray], config: Any, ids: Value, place: Value
) -> Value:
    """Word + position + token type, normalised, [B, T, D]; place [B, T] or [T]."""
    words = products.lookup(ids, "words", weights["word_embeddings.weight"])
    # All tokens are of type 0.
    table = weights["position_embeddings.weight"] + weights["token_type_embeddings.weight"][0]
    positions = graph.op("Gather", graph.weight("positions", table), graph.op("Min", place, np.int64(len(table) - 1)))
    scale = graph.weight("embeddings_norm_weight", weights["LayerNorm.weight"])
    shift = graph.weight("embeddings_norm_bias", weights["LayerNorm.bias"])
    return graph.op("LayerNormalization", words + positions, scale, shift, epsilon=config.layer_norm_eps)


def add_and_norm(graph: Graph, config: Any, name: str, x: Value, y: Value, norm: tuple, bias: np.ndarray) -> Value:
    """LayerNorm(x + y + bias)."""
    scale, shift = (graph.weight(f"{name}_{part}", array) for part, array in zip(("weight", "bias"), norm, strict=True))
    added = graph.weight(f"{name}_added", bias)
    return graph.op("microsoft:SkipLayerNormalization", x, y, scale, shift, added, epsilon=config.layer_norm_eps)


def silu(graph: Graph, x: Value) -> Value:
    """X sigmoid(x)."""
    return graph.op("microsoft:QuickGelu", x, alpha=1.0)


def convolution(graph: Graph, name: str, x: Value, weight: np.ndarray, bias: np.ndarray) -> Value:
    """Causal depthwise convolution of x [B, P + taps - 1, 3 D] -> [B, P, 3 D]."""
    image = x.add_axis(1).transpose(0, 3, 1, 2)  # [B, 3 D, 1, P + taps - 1]
    kernel = graph.weight(f"{name}_weight", weight[:, :, None, :])
    y = graph.op("Conv", image, kernel, graph.weight(f"{name}_bias", bias), group=len(weight))
    return y.transpose(0, 2, 3, 1)  # [B, 1, P, 3 D]


def unit(graph: Graph, x: Value, width: int) -> Value:
    """X / |x| over the last dimension, with the model's epsilon inside the root."""
    scale = np.full(width, width**-0.5, np.float32)
    return graph.op("RMSNormalization", x, scale, axis=-1, epsilon=1e-6 / width)


def flux(graph: Graph, name: str, weights: dict[str, np.ndarray], q: Value, k: Value) -> Value:
    """The resonance flux psi [S, 1, B, H, C] of q and k [S, 1, B, H, C, K]."""
    width = weights["bilinear"].shape[-1]
    first = weights["in_proj.weight"]  # [16, 2 K + 1]: for q, for k, for the resonance
    bilinear = weights["bilinear"] / weights["temperature"][:, None, None]
    resonance = graph.sum((q @ graph.weight(f"{name}_bilinear", bilinear)) * k, -1)  # [S, 1, B, H, C, 1]
    hidden = q @ graph.weight(f"{name}_q", first[:, :width].T) + k @ graph.weight(f"{name}_k", first[:, width:-1].T)
    hidden = hidden + resonance * graph.weight(f"{name}_resonance", first[:, -1])
    hidden = silu(graph, hidden + graph.weight(f"{name}_bias", weights["in_proj.bias"]))
    psi = hidden @ graph.weight(f"{name}_out", weights["out_proj.weight"].T)
    return graph.op("Sigmoid", graph.op("Squeeze", psi + graph.constant(weights["out_proj.bias"]), np.array([-1])))


def log_sigmoid(graph: Graph, x: Value) -> Value:
    """log(sigmoid(x))."""
    return graph.op("Neg", graph.op("Softplus", graph.op("Neg", x)))


def unit_lower_inverse(graph: Graph, a: Value, chunks: Chunks) -> Value:
    """(I + a)^-1 of strictly lower triangular matrices a [..., C, C], as the model's rule finds it.

    Squared over a whole chunk, the powers of a would lose float32 where keys repeat. So a is squared inside the blocks
    on its diagonal, (I - a)(I + a^2)(I + a^4), and the blocks are then joined: with d the inverse of the diagonal
    blocks and b the part below them, (I + a)^-1 = (I - d b)(I + (d b)^2) ... d.
    """
    most = chunks.most
    eye = chunks.corner(graph, np.eye(most))
    if most <= BLOCK:
        return _neumann(a, eye, most)
    blocks = np.kron(np.eye(most // BLOCK), np.ones((BLOCK, BLOCK)))
    inverse = _neumann(a * chunks.corner(graph, blocks), eye, BLOCK)
    below = inverse @ (a * chunks.corner(graph, 1 - blocks))
    return _neumann(below, eye, most // BLOCK) @ inverse


def _neumann(a: Value, eye: Value, vanishes: int) -> Value:
    """(I + a)^-1 = (I - a)(I + a^2)(I + a^4)... of matrices whose power `vanishes` is zero."""
    inverse = eye - a
    reach = 2
    while reach < vanishes:
        a = a @ a
        inverse = inverse @ (a + eye)
        reach *= 2
    return inverse


@dataclass
class Tokens:
    """What enters the rule: q, k, v [S, 1, B, H, C, K]; beta [S, 1, B, H, C]; the rest [S, M, B, H, C]."""

    q: Value
    k: Value
    v: Value
    beta: Value
    log_decay: Value
    write: Value
    read: Value


def memory_rule(
    graph: Graph, chunks: Chunks, two_way: int | None, tokens: Tokens, memory: Value | None
) -> tuple[Value, Value | None]:
    """The dual delta rule in chunks: o [S, B, H, C, V], and the memory after the last token.

    Per mode and chunk, with G the running sum of log_decay and D_ts = exp(G_t - G_s):

        A = strictly lower(beta_t (k_t . k_s) D_ts),    T = (I + A)^-1
        new = T (beta write v) - T (beta exp(G) k) Z
        o = read (exp(G) q Z + lower((q_t . k_s) D_ts) new);    Z <- exp(G_C) Z + sum_s exp(G_C - G_s) k_s new_s'

    With two-way reading the slow mode's part of o is read q Z, with the Z after the token's two-way chunk.

    Without a memory, texts begin here. A batch of one chunk then takes a shorter way to the same digits, and no memory
    is given.
    """
    every = np.ones((chunks.most, chunks.most))
    lower = chunks.corner(graph, np.tril(every))
    strictly = chunks.corner(graph, np.tril(every, -1))
    # G_t - G_s as a sum over the tokens between them: a difference of two sums would lose the digits of a small one.
    between = (tokens.log_decay.add_axis(-2) * lower) @ strictly
    decay = graph.op("Exp", between)  # D on and below the diagonal, ones above it
    transposed = tokens.k.transpose(0, 1, 2, 3, 5, 4)
    beta = tokens.beta.add_axis(-1)
    inverse = unit_lower_inverse(graph, (tokens.k @ transposed) * strictly * beta * decay, chunks)
    value = (inverse * (tokens.beta * tokens.write).add_axis(-2)) @ tokens.v  # T (beta write v) [S, M, B, H, C, V]
    read = tokens.read.add_axis(-1)  # [S, M, B, H, C, 1]
    score = (tokens.q @ transposed) * lower * causal(read, two_way) * causal(decay, two_way)
    inside = Inside(tokens.q, tokens.k, transposed, beta, tokens.log_decay, read, decay, inverse, value, score)

    def one_chunk(graph: Graph) -> Value:
        here = inside.within(graph)
        if two_way is None:
            return graph.sum(here.score @ here.value, 1, False)
        ends = here.transposed * last(here.decay.slice(1, 2, 1), -2)
        slow = ends @ here.value.slice(1, 2, 1)  # the slow memory after the last token [1, 1, B, H, K, V]
        o = here.score @ causal(here.value, two_way) + (here.q * here.read.slice(1, 2, 1)) @ slow
        return graph.op("Squeeze", o, np.array([1]))

    def from_zero(graph: Graph) -> Value:
        here = inside.within(graph)
        width = here.q.size(5)
        shape = graph.concat([graph.sizes(2), here.q.size(2), here.q.size(3), width, width], 0)
        return chunk_after_chunk(graph, chunks, two_way, here, graph.op("Expand", 0.0, shape))[0]

    if memory is not None:
        return chunk_after_chunk(graph, chunks, two_way, inside, memory)
    return graph.choose(graph.op("Equal", tokens.q.size(0), graph.sizes(1)), one_chunk, from_zero), None


@dataclass
class Inside:
    """What is known inside of all chunks, without the memory before them.

    Attributes:
        q, k: [S, 1, B, H, C, K].
        transposed: k' [S, 1, B, H, K, C].
        beta: [S, 1, B, H, C, 1].
        log_decay: [S, M, B, H, C].
        read: [S, M, B, H, C, 1].
        decay: D on and below the diagonal [S, M, B, H, C, C].
        inverse: T, of the same shape.
        value: T (beta write v) [S, M, B, H, C, V].
        score: read lower((q_t . k_s) D_ts) of the modes that are read after each token.
    """

    q: Value
    k: Value
    transposed: Value
    beta: Value
    log_decay: Value
    read: Value
    decay: Value
    inverse: Value
    value: Value
    score: Value

    def within(self, graph: Graph) -> Inside:
        """The same for the operators of a branch."""
        return Inside(*(Value(graph, getattr(self, field.name).name) for field in fields(self)))


def chunk_after_chunk(
    graph: Graph, chunks: Chunks, two_way: int | None, inside: Inside, memory: Value
) -> tuple[Value, Value]:
    """The part of `memory_rule` that carries the memory."""
    q = inside.q
    from_start = graph.op("Exp", graph.op("CumSum", inside.log_decay, np.int64(-1))).add_axis(-1)  # exp(G)
    to_end = last(inside.decay, -2)  # exp(G_C - G_s) [S, M, B, H, 1, C]
    strength = (inside.beta * from_start).transpose(0, 1, 2, 3, 5, 4)
    key = (inside.inverse * strength) @ inside.k  # T (beta exp(G) k) [S, M, B, H, C, K]
    ends = inside.transposed * to_end  # [S, M, B, H, K, C]
    forget = last(from_start, -2)  # exp(G_C) [S, M, B, H, 1, 1]

    def step(graph: Graph, states: list[Value], inputs: list[Value]) -> tuple[list[Value], list[Value]]:
        (z,) = states
        value, key, ends, forget = inputs
        new = value - key @ z
        return [forget * z + ends @ new], [new, z]

    (after,), (new, before) = graph.scan(step, [memory], [inside.value, key, ends, forget], 2)
    asking = q * (causal(inside.read, two_way) * causal(from_start, two_way))
    o = asking @ causal(before, two_way) + inside.score @ causal(new, two_way)  # [S, modes, B, H, C, V]
    if two_way is None:
        return graph.sum(o, 1, False), after
    # The memory after a two-way chunk is the one before the next.
    following = graph.concat([before.at(1, 1).slice(1, np.iinfo(np.int64).max, 0), after.at(1, 0).add_axis(0)], 0)
    steps = q.size(0)
    index = graph.op("Range", np.int64(0), graph.op("Squeeze", steps), np.int64(1))
    group = graph.constant(np.int64(two_way // chunks.most))
    ending = graph.op("Div", index, group) * group + group - graph.constant(np.int64(1))
    ending = graph.op("Min", ending, steps - graph.sizes(1))
    slow = graph.op("Gather", following, ending, axis=0)  # [S, B, H, K, V]
    asking = graph.op("Squeeze", q * inside.read.slice(1, 2, 1), np.array([1]))
    return graph.op("Squeeze", o, np.array([1])) + asking @ slow, after


def causal(x: Value, two_way: int | None) -> Value:
    """The modes of x [S, M, ...] that are read after each token: both, with two-way reading the fast one."""
    return x if two_way is None else x.slice(0, 1, 1)


def last(x: Value, axis: int) -> Value:
    """The last part of a dimension, which stays with size 1."""
    return x.slice(-1, np.iinfo(np.int64).max, axis)


def in_chunks(x: Value, chunks: Chunks, groups: int, heads: int) -> list[Value]:
    """Per-head numbers x [B, P, groups H] as [S, 1, B, H, C], one for each group."""
    x = x.reshape(0, -1, chunks.size, groups, heads).transpose(3, 1, 0, 4, 2).add_axis(2)  # [groups, S, 1, B, H, C]
    return [x.at(i, 0) for i in range(groups)]


def memory_layer(
    graph: Graph,
    products: Products,
    name: str,
    weights: dict[str, np.ndarray],
    config: Any,
    texts: Texts,
    x: Value,
    state: State | None,
) -> tuple[Value, State | None]:
    """The memory of a layer up to its output gate, [B, T, D], and its state after the last token.

    Without a state, texts begin here.
    """
    heads = config.num_attention_heads
    width = config.head_size
    size = config.hidden_size
    taps = config.conv_kernel
    rows = weights["in_proj.weight"]
    qkv = products.linear(x, f"{name}_qkv", rows[: 3 * size])  # [B, T, 3 D]
    rest = products.linear(x, f"{name}_rest", rows[3 * size :])  # [B, T, 5 H + gate]
    gates = len(rows) - 3 * size - 5 * heads
    per_head, *gate = rest.split([5 * heads, gates]) if gates else [rest]

    zeros = graph.constant(np.float32(0))
    before = graph.op("Expand", zeros, graph.sizes(texts.batch, taps - 1, 3 * size)) if state is None else state.conv
    fill = graph.op("Expand", zeros, graph.sizes(texts.batch, texts.chunks.padding, 3 * size))
    inputs = graph.concat([before, qkv, fill], 1)  # [B, taps - 1 + P, 3 D]
    conv = silu(graph, convolution(graph, f"{name}_conv", inputs, weights["conv1d.weight"], weights["conv1d.bias"]))
    conv = conv.reshape(texts.batch, -1, texts.chunks.size, 3, heads, width).transpose(
        3, 1, 0, 4, 2, 5
    )  # [3, S, B, H, C, K]
    qk, v = conv.add_axis(2).split([2, 1], 0)
    q, k = (graph.op("Squeeze", part, np.array([0])) for part in unit(graph, qk, width).split([1, 1], 0))
    v = graph.op("Squeeze", v, np.array([0]))

    fill = graph.op("Expand", zeros, graph.sizes(texts.batch, texts.chunks.padding, 5 * heads))
    beta, slow, fast, gate_fast, gate_slow = in_chunks(graph.concat([per_head, fill], 1), texts.chunks, 5, heads)
    fast_bias, slow_bias = weights["decay_bias"][..., None]  # [H, 1] each
    log_slow = log_sigmoid(graph, slow + graph.weight(f"{name}_slow", slow_bias)) * texts.real
    log_fast = log_slow + log_sigmoid(graph, fast + graph.weight(f"{name}_fast", fast_bias)) * texts.real
    psi = flux(graph, f"{name}_flux", inside(weights, "flux"), q, k)
    cos, sin = rotation(config)
    # R' (1 - psi, psi), the weights of the two memories in mode space.
    slope = np.array([-cos - sin, cos - sin]).reshape(2, 1, 1, 1)
    write = psi * graph.constant(slope) + graph.constant(np.array([cos, sin]).reshape(2, 1, 1, 1))
    read_fast = graph.op("Sigmoid", gate_fast) * (1.0 - psi)
    read_slow = graph.op("Sigmoid", gate_slow) * psi
    read = graph.concat([read_fast * cos - read_slow * sin, read_fast * sin + read_slow * cos], 1)
    log_decay = graph.concat([log_fast, log_slow], 1)
    tokens = Tokens(q, k, v, graph.op("Sigmoid", beta) * texts.real, log_decay, write, read)
    known = None if state is None else state.memory
    o, memory = memory_rule(graph, texts.chunks, config.two_way_chunk, tokens, known)
    scale = graph.weight(f"{name}_norm", weights["norm_weight"])
    o = graph.op("RMSNormalization", o, scale, axis=-1, epsilon=config.memory_norm_eps)
    o = o.transpose(1, 0, 3, 2, 4).reshape(texts.batch, -1, size).slice(0, texts.time, 1)  # [B, T, D]
    for opening in gate:
        if "gate_proj.weight" in weights:
            opening = products.linear(opening, f"{name}_gate", weights["gate_proj.weight"])
        o = o * graph.op("Sigmoid", opening)
    return o, None if memory is None else State(memory, last_inputs(graph, texts, inputs, taps))


def last_inputs(graph: Graph, texts: Texts, inputs: Value, taps: int) -> Value:
    """The convolution's inputs [B, taps - 1, 3 D] at the last real tokens of each text."""
    places = texts.lengths + graph.constant(np.arange(taps - 1))  # [B, taps - 1]
    return graph.op("GatherND", inputs, places.add_axis(2), batch_dims=1)


def rotation(config: Any) -> tuple[float, float]:
    """Cosine and sine of the angle between the two memories and their modes."""
    angle = np.arcsin(2 * config.cross_timescale) / 2
    return float(np.cos(angle)), float(np.sin(angle))


def inside(weights: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The weights of a module, by their names inside it."""
    return {name[len(prefix) + 1 :]: x for name, x in weights.items() if name.startswith(f"{prefix}.")}


def build(
    config: Any, weights: dict[str, np.ndarray], precision: str, about: dict[str, str], carries_state: bool
) -> onnx.ModelProto:
    """A LAM as a checked ONNX model.

    Args:
        config: a `LAMConfig`.
        weights: the float32 weights of a `LAMModel`, by name.
        precision: see `onnx_products`.
        about: metadata of the model.
        carries_state: whether the state of the texts goes in and out; texts begin in the call otherwise.

    Raises:
        ValueError: for an unknown precision.
    """
    graph = Graph()
    lam(graph, products_of(precision, graph), weights, config, carries_state)
    model = graph.model("lam_stream" if carries_state else "lam", about)
    onnx.checker.check_model(model)
    return model


def lam(graph: Graph, products: Products, weights: dict[str, np.ndarray], config: Any, carries_state: bool) -> None:
    """The whole encoder, from its inputs to its outputs."""
    input_ids = graph.input("input_ids", np.int64, ["batch", "tokens"])
    attention_mask = graph.input("attention_mask", np.int64, ["batch", "tokens"])
    layers = config.num_hidden_layers
    shape = ("batch", config.num_attention_heads, config.head_size, config.head_size)
    conv_shape = ("batch", config.conv_kernel - 1, 3 * config.hidden_size)
    texts, ids, place = to_left(graph, config.two_way_chunk, products.rounds, input_ids, attention_mask)
    if carries_state:
        memory = graph.input("memory", np.float32, [layers, 2, *shape])
        conv = graph.input("conv", np.float32, [layers, *conv_shape])
        seen = graph.input("seen", np.int64, ["batch"])
        place = place + seen.add_axis(1)
    x = embeddings(graph, products, inside(weights, "embeddings"), config, ids, place)
    states: list[State] = []
    for i in range(layers):
        name = f"layer_{i}"
        layer = inside(weights, f"layers.{i}")
        state = State(memory.at(i, 0), conv.at(i, 0)) if carries_state else None
        y, after = memory_layer(graph, products, name, inside(layer, "memory"), config, texts, x, state)
        states += [] if after is None else [after]
        y = products.linear(y, f"{name}_out", layer["memory.out_proj.weight"])
        norm = (layer["memory_norm.weight"], layer["memory_norm.bias"])
        x = add_and_norm(graph, config, f"{name}_memory_norm", x, y, norm, layer["memory.out_proj.bias"])
        y = products.linear(x, f"{name}_up", layer["feed_forward.in_proj.weight"])
        y = graph.op("microsoft:BiasGelu", y, graph.weight(f"{name}_up_bias", layer["feed_forward.in_proj.bias"]))
        y = products.linear(y, f"{name}_down", layer["feed_forward.out_proj.weight"])
        norm = (layer["feed_forward_norm.weight"], layer["feed_forward_norm.bias"])
        x = add_and_norm(graph, config, f"{name}_norm", x, y, norm, layer["feed_forward.out_proj.bias"])
    size = config.hidden_size
    x = graph.op("Gather", x.reshape(-1, size), texts.rank).reshape(texts.batch, -1, size) * texts.mask
    total = graph.sum(x, 1, False)  # [B, D]
    if carries_state:
        graph.output("token_sum", total, np.float32, ["batch", size])
    else:
        count = graph.op("Max", texts.lengths.cast(np.float32), 1.0)
        graph.output(
            "sentence_embedding", normalised(graph, graph.op("Div", total, count)), np.float32, ["batch", size]
        )
    graph.output("last_hidden_state", x, np.float32, ["batch", "tokens", size])
    if carries_state:
        memories = graph.concat([state.memory.add_axis(0) for state in states], 0)
        convs = graph.concat([state.conv.add_axis(0) for state in states], 0)
        graph.output("next_memory", memories, np.float32, [layers, 2, *shape])
        graph.output("next_conv", convs, np.float32, [layers, *conv_shape])
        graph.output("next_seen", seen + graph.op("Squeeze", texts.lengths, np.array([1])), np.int64, ["batch"])


def normalised(graph: Graph, x: Value) -> Value:
    """Rows of length one; a row of zeros stays."""
    length = graph.op("ReduceL2", x, np.array([-1]), keepdims=1)
    return graph.op("Div", x, graph.op("Max", length, 1e-12))
