"""Looking into a LAM's memories, and changing its rule while it reads."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...model.delta_rule_lam import decay_matrix, dual_delta_rule
from ...model.packing_lam import SEGMENT, text_by_text
from ...model.state_lam import LAMState
from ..models import MeasuredModel

Rule = Callable[..., tuple[torch.Tensor, torch.Tensor]]


@contextlib.contextmanager
def replaced_rule(lam, rule: Rule) -> Iterator[None]:
    """Inside the block the layers of a LAM run `rule` in place of `dual_delta_rule`, in torch.

    rule: same keyword-only arguments and return value (delta_rule_lam.py). Layers call it in their order.
    """
    memories = [layer.memory for layer in lam.layers]
    before = [memory.rule for memory in memories]
    for memory in memories:
        memory.rule = rule
    try:
        yield
    finally:
        for memory, own in zip(memories, before, strict=True):
            memory.rule = own


def additive_rule(
    *, q, k, v, beta, log_decay, write, read, state=None, cu_seqlens=None, chunk_size=None, two_way_chunk=None
):
    """The rule without its delta: nothing is taken back before a write (gated linear attention, Yang et al. 2024).

        Z_i <- decay_i Z_i + beta k (write_i v)';   o = sum_i read_i q' Z_i

    Arguments and return value as `dual_delta_rule`; float32 (float64 for float64 input) whatever autocast says.
    """
    tokens = {"q": q, "k": k, "v": v, "beta": beta, "log_decay": log_decay, "write": write, "read": read}
    if cu_seqlens is not None:
        return text_by_text(additive_rule, list(tokens.values()), state, cu_seqlens, two_way_chunk)
    dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
    size, outputs = two_way_chunk or chunk_size or 64, []
    with torch.autocast(v.device.type, enabled=False):
        t = {name: x.to(dtype).transpose(1, 2) for name, x in tokens.items()}  # [B, H, T, ...]
        shape = (*t["q"].shape[:2], 2, q.shape[-1], v.shape[-1])
        z = t["q"].new_zeros(shape) if state is None else state.to(dtype)
        for start in range(0, q.shape[1], size):
            q_, k_, v_, beta_, decay_, write_, read_ = (x[:, :, start : start + size] for x in t.values())
            decay_, write_, read_ = (x.transpose(-1, -2) for x in (decay_, write_, read_))  # [B, H, 2, C]
            matrix = decay_matrix(decay_)  # [B, H, 2, C, C]
            new = (beta_.unsqueeze(2) * write_).unsqueeze(-1) * v_.unsqueeze(2)  # [B, H, 2, C, V]
            from_start = decay_.cumsum(-1).exp().unsqueeze(-1)
            score = (q_ @ k_.transpose(-1, -2)).unsqueeze(2) * matrix
            o = from_start * (q_.unsqueeze(2) @ z) + score @ new
            to_end = matrix[..., -1, :, None] * k_.unsqueeze(2)
            z = from_start[..., -1:, :] * z + to_end.transpose(-1, -2) @ new
            if two_way_chunk is not None:  # the slow memory is read when the chunk has been written
                o = torch.stack([o[:, :, 0], q_ @ z[:, :, 1]], dim=2)
            outputs.append((read_.unsqueeze(-1) * o).sum(2))
        o = torch.cat(outputs, dim=2).transpose(1, 2) if outputs else v
    return o.to(v.dtype), z


def by_layer(kept: list[torch.Tensor], layers: int) -> torch.Tensor:
    """[layers, B, T, ...] of what each call of each layer gave, [B, T, ...]: segments go through all layers in turn."""
    return torch.stack([torch.cat(kept[i::layers], dim=1) for i in range(layers)])


class Recorder:
    """A rule that keeps what the layers of a LAM gave it: `calls` holds the keyword arguments of each call."""

    def __init__(self, lam, rule: Rule = dual_delta_rule):
        self.layers, self.rule = len(lam.layers), rule
        self.calls: list[dict[str, Any]] = []

    def __call__(self, **arguments):
        self.calls.append(arguments)
        return self.rule(**arguments)

    def stacked(self, name: str) -> torch.Tensor:
        """An argument of all calls, [layers, B, T, ...]."""
        return by_layer([call[name] for call in self.calls], self.layers)


def write_to_fast_only(lam) -> Rule:
    """The rule with every write going to the fast memory with weight 1 and to the slow one with weight 0."""
    memory = lam.layers[0].memory
    modes = torch.tensor([memory.cos, memory.sin])

    def rule(*, write, **arguments):
        return dual_delta_rule(write=modes.to(write.dtype).expand_as(write), **arguments)

    return rule


def memories(lam, state: LAMState) -> torch.Tensor:
    """What the fast and the slow memories hold, S = R Z: [layers, B, H, 2, K, V], index 0 fast, 1 slow."""
    z = torch.stack(state.memory)
    pairs = [(layer.memory.cos, layer.memory.sin) for layer in lam.layers]
    cos, sin = (torch.tensor(x, dtype=z.dtype).view(-1, 1, 1, 1, 1) for x in zip(*pairs, strict=True))
    fast, slow = z[:, :, :, 0], z[:, :, :, 1]
    return torch.stack([cos * fast + sin * slow, cos * slow - sin * fast], dim=3)


@torch.inference_mode()
def read(lam, ids: torch.Tensor, state: LAMState) -> LAMState:
    """Read token ids [B, T] on from a state, which is updated and returned."""
    for start in range(0, ids.shape[1], SEGMENT):
        lam(input_ids=ids[:, start : start + SEGMENT], cache=state)
    return state


class Reading:
    """Texts of one length that a LAM reads in step, a few tokens at a time; its memories may be asked for after any.

    A model that reads two ways goes on from whole chunks only, so the tokens of the open chunk are held back and read
    again for each `now`.

    Args:
        lam: the model.
        state: before the first token; None: a new one.
    """

    def __init__(self, lam, state: LAMState | None = None):
        self.lam = lam
        self.chunk: int = lam.config.two_way_chunk or 1
        self.state = lam.new_state(1) if state is None else state
        self.open = torch.zeros(self.state.batch_size, 0, dtype=torch.long)

    def read(self, ids: torch.Tensor) -> None:
        """Read on: token ids [B, T], or [1, T] for every text the same."""
        ids = torch.cat([self.open, ids.expand(len(self.open), -1)], dim=1)
        whole = ids.shape[1] // self.chunk * self.chunk
        read(self.lam, ids[:, :whole], self.state)
        self.open = ids[:, whole:]

    def now(self) -> LAMState:
        """The state after the last token that was read."""
        return read(self.lam, self.open, self.state.clone())

    def select(self, rows: Sequence[int]) -> "Reading":
        """A reading that goes on from these texts, of which any may be named several times."""
        chosen = Reading(self.lam, self.state.select(rows))
        chosen.open = self.open[list(rows)]
        return chosen


# Words of one token each: names and what is said of them.
NAMES = """
    alice robert maria henry susan peter laura simon clara edward helen george julia martin nancy oscar paula victor
    rachel thomas emma daniel sarah philip anna walter diana arthur lucy frank rosa albert
""".split()  # noqa: SIM905 - a list would take one line a word
WORDS = """
    apple bridge candle desert engine forest garden hammer island jacket kitchen ladder mirror needle orange piano
    queen river silver temple uniform valley window yellow anchor basket copper dragon eagle feather guitar helmet
""".split()  # noqa: SIM905


@dataclass
class Facts:
    """What the memories were given of some facts, one text each.

    Attributes:
        keys: [layers, facts, H, K] of the token that ends each fact.
        values: [layers, facts, H, V] of the same token, less their mean over the facts.
        reading: one row a fact and, last, a row that read as many other tokens in its place.
    """

    keys: torch.Tensor
    values: torch.Tensor
    reading: Reading

    def copy(self) -> Reading:
        """A reading that goes on from where the facts end."""
        return self.reading.select(range(len(self.reading.open)))

    def scores(self, lam, state: LAMState, which: str) -> np.ndarray:
        """How well each state answers for each fact, [facts, facts].

        Row j reads the memories of text j with the key of fact j and compares what comes out with the values of all
        facts: mean over layers and heads of the cosine. which: "fast", "slow" or "both" (their sum).
        """
        return self._compare(memories(lam, state)[:, : self.keys.shape[1]], which)

    def control(self, lam, state: LAMState, which: str) -> np.ndarray:
        """The same for the text that holds no fact, read with the key of each fact."""
        return self._compare(memories(lam, state)[:, -1:].expand(-1, self.keys.shape[1], *[-1] * 4), which)

    def _compare(self, s: torch.Tensor, which: str) -> np.ndarray:
        s = s.sum(3) if which == "both" else s[:, :, :, ("fast", "slow").index(which)]
        answers = torch.einsum("ljhk,ljhkv->ljhv", self.keys, s)
        answers = torch.nn.functional.normalize(answers, dim=-1)
        values = torch.nn.functional.normalize(self.values, dim=-1)
        return torch.einsum("ljhv,lihv->lhji", answers, values).mean((0, 1)).numpy()


def margins(scores: np.ndarray) -> np.ndarray:
    """Score of the own fact less the mean score of the others, [facts]: zero on average without memory."""
    count = len(scores)
    own = np.diag(scores)
    return own - (scores.sum(1) - own) / (count - 1)


def hits(scores: np.ndarray) -> np.ndarray:
    """Whether the own fact scores highest, [facts] of bool."""
    return scores.argmax(1) == np.arange(len(scores))


def fact_ids(encoder: MeasuredModel, count: int) -> torch.Tensor:
    """Token ids [at most count, T] of "NAME keeps the WORD" with another name and word each, all of one length."""
    rows = [encoder.token_ids(f"{name} keeps the {word}") for name, word in zip(NAMES, WORDS, strict=True)]
    usual = Counter(map(len, rows)).most_common(1)[0][0]
    rows = [row for row in rows if len(row) == usual][:count]
    return torch.tensor(rows)


@torch.inference_mode()
def read_facts(
    lam, before: Sequence[int], facts: torch.Tensor, instead: Sequence[int], rule: Rule = dual_delta_rule
) -> Facts:
    """Read `before`, then in one row each the facts [facts, T] and, in a last row, the tokens `instead` [T].

    A model that reads two ways leaves out the first tokens of `before`, so that the facts end with a chunk and are
    written once and for all.

    rule: stands in for the model's while facts are read, from the beginning of the chunk where they begin.
    """
    reading = Reading(lam)
    reading.read(torch.tensor([list(before)[(len(before) + facts.shape[1]) % reading.chunk :]]))
    reading = reading.select([0] * (len(facts) + 1))
    recorder = Recorder(lam, rule)
    with replaced_rule(lam, recorder):
        reading.read(torch.cat([facts, torch.tensor([list(instead)])]))
    keys, values = (recorder.stacked(name)[:, :-1, -1] for name in ("k", "v"))
    return Facts(keys, values - values.mean(1, keepdim=True), reading)


def forgetting_curve(
    lam, facts: Facts, filler: Sequence[int], lags: Sequence[int], which: Sequence[str] = ("fast", "slow", "both")
) -> list[dict[str, Any]]:
    """Scores of the facts after each number of further tokens: [{"lag", "scores": {which}, "control": {which}}]."""
    reading = facts.copy()
    done = 0
    rows = []
    for lag in lags:
        reading.read(torch.tensor([list(filler[done:lag])], dtype=torch.long))
        state = reading.now()
        done = lag
        row = {
            "lag": lag,
            "scores": {name: facts.scores(lam, state, name) for name in which},
            "control": {name: facts.control(lam, state, name) for name in which},
        }
        rows.append(row)
    return rows
