"""The memory rule with two-way reading as two Triton kernels, forward and backward.

One program works on one memory of one head of one text, token by token, with the state [K, V] in registers. Chunks
start at multiples of C tokens. A memory that reads one way answers a token's query right after the token has been
written, a memory that reads two ways when the last token of its chunk has been. Backward computes the states before
each token again, keeps them as float16 and walks back through them.

Alphabet: B texts, T tokens, H heads, M memories a head, K = V head size. This module needs triton and is imported only
where it is used.
"""

from typing import Any

import torch
import triton
import triton.language as tl

# Bytes of states that backward keeps at once; texts beyond them wait for their turn.
STATE_BYTES = 12e9


@triton.jit
def _forward(
    query,
    key,
    value,
    log_decay,
    beta,
    output,
    states,
    time,
    chunk,
    HEADS: tl.constexpr,
    MEMORIES: tl.constexpr,
    WIDTH: tl.constexpr,
    KEEP_STATES: tl.constexpr,
    LAST_ONLY: tl.constexpr,
    ALL: tl.constexpr,
    ADDITIVE: tl.constexpr,
):
    """Writes output [B, T, H M, V]; with KEEP_STATES only the decayed states before each token, [B, T, H M, K, V].

    Two ways read: with ALL every memory, with LAST_ONLY the last one of each head, else none. With ADDITIVE nothing is
    taken back before a write.
    """
    program = tl.program_id(0).to(tl.int64)
    text = program // (HEADS * MEMORIES)
    memory = program % (HEADS * MEMORIES)
    head = memory // MEMORIES
    line = tl.arange(0, WIDTH)
    square = line[:, None] * WIDTH + line[None, :]
    # Where this program's first token is; the next one is a step further.
    key_at = (text * time * HEADS + head) * WIDTH + line
    value_at = (text * time * HEADS * MEMORIES + memory) * WIDTH + line
    number_at = text * time * HEADS * MEMORIES + memory
    key_step = HEADS * WIDTH
    value_step = HEADS * MEMORIES * WIDTH
    number_step = HEADS * MEMORIES
    two_way = ALL | (LAST_ONLY & (memory % MEMORIES == MEMORIES - 1))
    state = tl.zeros([WIDTH, WIDTH], tl.float32)
    for start in range(0, time, chunk):
        count = tl.minimum(chunk, time - start)
        for t in range(count):
            k = tl.load(key + key_at + t * key_step).to(tl.float32)
            v = tl.load(value + value_at + t * value_step).to(tl.float32)
            state = state * tl.exp(tl.load(log_decay + number_at + t * number_step))
            if KEEP_STATES:
                place = (number_at + t * number_step) * WIDTH * WIDTH + square
                tl.store(states + place, state.to(tl.float16))
            if not ADDITIVE:
                v = v - tl.sum(k[:, None] * state, 0)
            change = tl.load(beta + number_at + t * number_step) * v
            state = state + k[:, None] * change[None, :]
            if not KEEP_STATES:  # noqa: SIM102 - known to the compiler, the other is not
                if not two_way:
                    q = tl.load(query + key_at + t * key_step).to(tl.float32)
                    answer = tl.sum(q[:, None] * state, 0)
                    tl.store(output + value_at + t * value_step, answer.to(output.dtype.element_ty))
        if not KEEP_STATES:  # noqa: SIM102
            if two_way:
                for t in range(count):
                    q = tl.load(query + key_at + t * key_step).to(tl.float32)
                    answer = tl.sum(q[:, None] * state, 0)
                    tl.store(output + value_at + t * value_step, answer.to(output.dtype.element_ty))
        key_at += chunk * key_step
        value_at += chunk * value_step
        number_at += chunk * number_step


@triton.jit
def _backward(
    query,
    key,
    value,
    log_decay,
    beta,
    states,
    d_output,
    d_query,
    d_key,
    d_value,
    d_log_decay,
    d_beta,
    time,
    chunk,
    HEADS: tl.constexpr,
    MEMORIES: tl.constexpr,
    WIDTH: tl.constexpr,
    LAST_ONLY: tl.constexpr,
    ALL: tl.constexpr,
    ADDITIVE: tl.constexpr,
):
    """Gradients of all inputs. d_query and d_key are one a memory, [B, T, H M, K]; the caller sums them over M."""
    program = tl.program_id(0).to(tl.int64)
    text = program // (HEADS * MEMORIES)
    memory = program % (HEADS * MEMORIES)
    head = memory // MEMORIES
    line = tl.arange(0, WIDTH)
    square = line[:, None] * WIDTH + line[None, :]
    key_step = HEADS * WIDTH
    value_step = HEADS * MEMORIES * WIDTH
    number_step = HEADS * MEMORIES
    two_way = ALL | (LAST_ONLY & (memory % MEMORIES == MEMORIES - 1))
    d_state = tl.zeros([WIDTH, WIDTH], tl.float32)
    chunks = (time + chunk - 1) // chunk
    for c in range(chunks):
        start = (chunks - 1 - c) * chunk
        count = tl.minimum(chunk, time - start)
        key_at = ((text * time + start) * HEADS + head) * WIDTH + line
        value_at = ((text * time + start) * HEADS * MEMORIES + memory) * WIDTH + line
        number_at = (text * time + start) * HEADS * MEMORIES + memory
        if two_way:
            # The state after the chunk's last token, which all of its queries read.
            last = count - 1
            before = tl.load(states + (number_at + last * number_step) * WIDTH * WIDTH + square).to(tl.float32)
            k = tl.load(key + key_at + last * key_step).to(tl.float32)
            v = tl.load(value + value_at + last * value_step).to(tl.float32)
            if not ADDITIVE:
                v = v - tl.sum(k[:, None] * before, 0)
            change = tl.load(beta + number_at + last * number_step) * v
            end = before + k[:, None] * change[None, :]
            for t in range(count):
                q = tl.load(query + key_at + t * key_step).to(tl.float32)
                d_answer = tl.load(d_output + value_at + t * value_step).to(tl.float32)
                d_state += q[:, None] * d_answer[None, :]
                d_q = tl.sum(end * d_answer[None, :], 1)
                tl.store(d_query + value_at + t * value_step, d_q.to(d_query.dtype.element_ty))
        for i in range(count):
            t = count - 1 - i
            k = tl.load(key + key_at + t * key_step).to(tl.float32)
            v = tl.load(value + value_at + t * value_step).to(tl.float32)
            strength = tl.load(beta + number_at + t * number_step)
            before = tl.load(states + (number_at + t * number_step) * WIDTH * WIDTH + square).to(tl.float32)
            error = v
            if not ADDITIVE:
                error = v - tl.sum(k[:, None] * before, 0)
            change = strength * error
            if not two_way:
                q = tl.load(query + key_at + t * key_step).to(tl.float32)
                d_answer = tl.load(d_output + value_at + t * value_step).to(tl.float32)
                after = before + k[:, None] * change[None, :]
                d_q = tl.sum(after * d_answer[None, :], 1)
                tl.store(d_query + value_at + t * value_step, d_q.to(d_query.dtype.element_ty))
                d_state += q[:, None] * d_answer[None, :]
            d_change = tl.sum(k[:, None] * d_state, 0)
            d_recalled = -strength * d_change
            if ADDITIVE:
                d_recalled = d_recalled * 0
            d_k = tl.sum(d_state * change[None, :] + before * d_recalled[None, :], 1)
            tl.store(d_key + value_at + t * value_step, d_k.to(d_key.dtype.element_ty))
            tl.store(d_value + value_at + t * value_step, (strength * d_change).to(d_value.dtype.element_ty))
            tl.store(d_beta + number_at + t * number_step, tl.sum(error * d_change, 0))
            d_state = d_state + k[:, None] * d_recalled[None, :]
            tl.store(d_log_decay + number_at + t * number_step, tl.sum(tl.sum(d_state * before, 1), 0))
            d_state = d_state * tl.exp(tl.load(log_decay + number_at + t * number_step))


class MemoryRule(torch.autograd.Function):
    """The rule with its gradients; use `memory_rule`."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        log_decay: torch.Tensor,
        beta: torch.Tensor,
        chunk: int,
        two_way: str,
        additive: bool,
    ) -> torch.Tensor:
        """Arguments as of `memory_rule`."""
        q, k, v, log_decay, beta = (x.contiguous() for x in (q, k, v, log_decay, beta))
        batch, time, heads, width = q.shape
        memories = v.shape[2] // heads
        output = torch.empty_like(v)
        _forward[(batch * heads * memories,)](
            q,
            k,
            v,
            log_decay,
            beta,
            output,
            output,
            time,
            chunk,
            HEADS=heads,
            MEMORIES=memories,
            WIDTH=width,
            KEEP_STATES=False,
            LAST_ONLY=two_way == "slow",
            ALL=two_way == "all",
            ADDITIVE=additive,
            num_warps=1,
        )
        ctx.chunk = chunk
        ctx.two_way = two_way
        ctx.additive = additive
        ctx.save_for_backward(q, k, v, log_decay, beta)
        return output

    @staticmethod
    def backward(ctx: Any, d_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of the arguments of `forward`."""
        q, k, v, log_decay, beta = ctx.saved_tensors
        d_output = d_output.contiguous()
        batch, time, heads, width = q.shape
        memories = v.shape[2] // heads
        sizes = {"HEADS": heads, "MEMORIES": memories, "WIDTH": width}
        ways = {"LAST_ONLY": ctx.two_way == "slow", "ALL": ctx.two_way == "all", "ADDITIVE": ctx.additive}
        d_q = torch.empty(batch, time, heads * memories, width, dtype=torch.float32, device=q.device)
        d_k = torch.empty_like(d_q)
        d_v = torch.empty_like(v)
        d_log_decay = torch.empty_like(log_decay)
        d_beta = torch.empty_like(beta)
        texts_at_once = max(1, int(STATE_BYTES // (time * heads * memories * width * width * 2)))
        for start in range(0, batch, texts_at_once):
            part = slice(start, start + texts_at_once)
            inputs = [x[part] for x in (q, k, v, log_decay, beta)]
            gradients = [x[part] for x in (d_q, d_k, d_v, d_log_decay, d_beta)]
            programs = len(inputs[0]) * heads * memories
            states = torch.empty(programs * time, width * width, dtype=torch.float16, device=q.device)
            _forward[(programs,)](*inputs, v, states, time, ctx.chunk, **sizes, KEEP_STATES=True, **ways, num_warps=1)
            _backward[(programs,)](
                *inputs, states, d_output[part], *gradients, time, ctx.chunk, **sizes, **ways, num_warps=1
            )
        d_q = d_q.unflatten(2, (heads, memories)).sum(3)
        d_k = d_k.unflatten(2, (heads, memories)).sum(3)
        return d_q.to(q.dtype), d_k.to(k.dtype), d_v, d_log_decay, d_beta, None, None, None


def memory_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    chunk: int,
    two_way: str,
    additive: bool = False,
) -> torch.Tensor:
    """What the memories answer: [B, T, H M, V] in v's dtype.

    Args:
        q, k: [B, T, H, K], K = V a power of two of at least 16.
        v: [B, T, H M, V], the memories of one head next to each other.
        log_decay, beta: [B, T, H M], float32.
        chunk: C.
        two_way: which memories read two ways: "none", "slow" (the last one of each head) or "all".
        additive: write without taking back first what the memory answers to the key.
    """
    return MemoryRule.apply(q, k, v, log_decay.float(), beta.float(), chunk, two_way, additive)
