"""Late chunking: one pass over a text, one embedding for each of its spans."""

from __future__ import annotations

import itertools
import numbers
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..model.packing_lam import SEGMENT
from ..model.streaming_lam import RunningPool, check_text, stream
from .pipeline import Pipeline

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from .encoder import LAMEncoder

# The end of a sentence: a full stop, question or exclamation mark and what closes quotations after it, before a
# space; their East Asian forms need none. A line that ends in a blank line is a sentence too.
_SENTENCE_END = re.compile(
    "[.!?\u2026]+[\"'\u201d\u2019)\\]]*(?=\\s)|[\u3002\uff01\uff1f]+[\u201d\u2019\u300d\u300f\uff09]*|\n[ \t\r]*\n"
)
_PARAGRAPH_END = re.compile(r"\n[ \t\r]*\n")


@dataclass(frozen=True)
class Chunk:
    """A span of a text and its embedding.

    Attributes:
        text: the span, `whole[start:end]`.
        start: its first character in the whole text.
        end: the character after its last one.
        embedding: [D] float32. It carries what came before the span, too.
    """

    text: str
    start: int
    end: int
    embedding: np.ndarray[Any, Any]


@torch.inference_mode()
def late_chunks(
    model: SentenceTransformer | LAMEncoder, text: str, boundaries: str | int | Sequence[tuple[int, int]] = "sentence"
) -> list[Chunk]:
    """Embed spans of a text in the light of everything before them (Günther et al. 2024, "Late Chunking"), in one pass.

    A span's embedding is the mean of the states of the tokens that lie wholly inside it, normalised if the model's
    embeddings are. The states know all that came before and, where the model reads two ways, what follows in their own
    chunk of `two_way_chunk` tokens; nothing of what comes later.

    Args:
        model: a SentenceTransformer of a LAM folder, or a `LAMEncoder`.
        text: of any length.
        boundaries: "sentence" (a plain rule: . ! ? before a space, or a blank line), "paragraph" (blank lines), a
            number of tokens, or your own spans (start, end) in characters, in order and without overlap.

    Returns:
        one `Chunk` a span; spans of "sentence" and "paragraph" without a token (a line of spaces) are left out.

    Raises:
        ValueError: for a text that is no string, spans out of range, out of order, overlapping, empty or without a
            whole token, and unknown boundaries.
    """
    pipeline = Pipeline(model)
    text = check_text(text)
    if isinstance(boundaries, bool) or (isinstance(boundaries, numbers.Integral) and boundaries < 1):
        raise ValueError(f"boundaries must be a positive number of tokens, got {boundaries!r}.")
    if isinstance(boundaries, numbers.Integral):
        return _by_tokens(pipeline, text, int(boundaries))
    own = not isinstance(boundaries, str)
    if not isinstance(boundaries, str) and isinstance(boundaries, Iterable):
        spans = _check_spans(boundaries, len(text))
    elif boundaries == "sentence":
        spans = _split(text, _SENTENCE_END)
    elif boundaries == "paragraph":
        spans = _split(text, _PARAGRAPH_END)
    else:
        raise ValueError(
            f"boundaries must be 'sentence', 'paragraph', a number of tokens or spans, got {boundaries!r}."
        )
    pools = [RunningPool("mean") for _ in spans]
    starts, ends = (np.array([span[i] for span in spans], dtype=np.int64) for i in (0, 1))
    for states, offsets in _states(pipeline, text):
        # The only span that can hold a token is the last one that starts no later than it.
        place = np.searchsorted(starts, offsets[:, 0], side="right") - 1
        inside = (place >= 0) & (offsets[:, 1] <= ends[np.maximum(place, 0)]) if len(spans) else np.zeros(0, bool)
        for i in np.unique(place[inside]) if len(spans) else ():
            pools[i].add(states[torch.from_numpy(inside & (place == i))])
    if own and (short := [span for span, pool in zip(spans, pools, strict=True) if not pool.count]):
        start, end = short[0]
        raise ValueError(f"The span ({start}, {end}) = {text[start:end][:40]!r} holds no whole token.")
    return [
        Chunk(text[start:end], start, end, pipeline.finish(pool.result()).cpu().numpy())
        for (start, end), pool in zip(spans, pools, strict=True)
        if pool.count
    ]


def _by_tokens(pipeline: Pipeline, text: str, size: int) -> list[Chunk]:
    chunks = []
    pool = RunningPool("mean")
    start = 0
    end = 0
    for states, offsets in _states(pipeline, text):
        first = 0
        while first < len(states):
            last = min(first + size - pool.count, len(states))
            if not pool.count:
                start = int(offsets[first, 0])
            pool.add(states[first:last])
            end = int(offsets[last - 1, 1])
            first = last
            if pool.count == size:
                chunks.append(Chunk(text[start:end], start, end, pipeline.finish(pool.result()).cpu().numpy()))
                pool = RunningPool("mean")
    if pool.count:
        chunks.append(Chunk(text[start:end], start, end, pipeline.finish(pool.result()).cpu().numpy()))
    return chunks


def _states(pipeline: Pipeline, text: str) -> Iterator[tuple[torch.Tensor, np.ndarray[Any, Any]]]:
    """Token states [T, D] and their characters [T, 2] in the text, a segment at a time, special tokens left out."""
    opening = len(pipeline.tokenizer.opening)
    waiting: list[np.ndarray[Any, Any]] = []

    def segments() -> Iterator[list[int]]:
        ids = list(pipeline.tokenizer.opening)
        offsets = [(0, 0)] * opening
        for start, end in pipeline.tokenizer.pieces(text):
            new, places = pipeline.tokenizer.piece_with_offsets(text[start:end])
            ids += new
            offsets += [(start + a, start + b) for a, b in places]
            while len(ids) >= SEGMENT:
                waiting.append(np.array(offsets[:SEGMENT], dtype=np.int64).reshape(-1, 2))
                yield ids[:SEGMENT]
                ids = ids[SEGMENT:]
                offsets = offsets[SEGMENT:]
        waiting.append(np.array(offsets, dtype=np.int64).reshape(-1, 2))
        # The closing token is read too: where the model reads two ways, the last tokens see it.
        yield ids + pipeline.tokenizer.closing

    skip = opening
    for states, _ in stream(pipeline.lam, segments()):
        offsets = waiting.pop(0)
        yield states[skip : len(offsets)], offsets[skip:]
        skip = 0


def _split(text: str, end: re.Pattern[str]) -> list[tuple[int, int]]:
    """Spans between the matches of `end`, each with its end mark, without the spaces around."""
    marks = [0, *(mark.end() for mark in end.finditer(text)), len(text)]
    spans = []
    for start, stop in itertools.pairwise(marks):
        between = text[start:stop]
        start += len(between) - len(between.lstrip())
        stop -= len(between) - len(between.rstrip())
        if start < stop:
            spans.append((start, stop))
    return spans


def _check_spans(spans: Iterable[Any], length: int) -> list[tuple[int, int]]:
    checked: list[tuple[int, int]] = []
    for span in spans:
        try:
            start, end = span
            start, end = int(start), int(end)
        except (TypeError, ValueError):
            raise ValueError(f"A span must be two integers (start, end), got {span!r}.") from None
        if not 0 <= start < end <= length:
            raise ValueError(f"The span ({start}, {end}) is empty or out of range: the text has {length} characters.")
        if checked and start < checked[-1][1]:
            raise ValueError(f"The span ({start}, {end}) begins before the one before it ends, {checked[-1]}.")
        checked.append((start, end))
    return checked
