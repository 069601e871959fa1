# Copyright 2026 The LAM authors. Licensed under the Apache License, Version 2.0.
"""Texts of any length: tokenised in pieces with the ids of one go, read in segments, pooled while they are read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import transformers

if TYPE_CHECKING:
    from .modeling_lam import LAMModel
    from .state_lam import LAMState

# A text may be cut before these characters: separators, ASCII punctuation other than brackets (special tokens have
# those) and CJK ideographs. BERT's normalizer and pre-tokenizer break there whatever is on either side.
_CUT = re.compile(
    "[ \t\n\r\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
    "!\"#$%&'*+,\\-./:;=?@\\\\^_`|~"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df]"
)
PIECE = 16_384  # characters tokenised at once
LONGEST_WORD = 1_000_000  # characters without a place to cut; the tokenizer needs about 100 bytes for each
_LONG_WORD = re.compile("([0-9A-Za-z]{1024})[0-9A-Za-z]+")


def check_text(text: object) -> str:
    """Return `text`. Raises ValueError, naming it, unless it is a string that UTF-8 can express."""
    if not isinstance(text, str):
        shown = repr(text)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        raise ValueError(f"LAM embeds strings, got {type(text).__name__}: {shown}.")
    for start in range(0, len(text), PIECE):
        try:
            text[start : start + PIECE].encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"The text {text[:40]!r}... holds the lone surrogate {text[start + error.start]!r} at character "
                f"{start + error.start}, which is no Unicode character; decode with errors='replace'."
            ) from None
    return text


class TextTokenizer:
    """Token ids of texts, without padding or truncation, at once or in pieces.

    Args:
        tokenizer: a fast tokenizer of transformers.

    Attributes:
        opening: ids of the special tokens before a text.
        closing: ids of the special tokens after it.
        can_cut: whether a text may be tokenised in pieces.

    Raises:
        ValueError: for a tokenizer without a `tokenizers` backend.
    """

    def __init__(self, tokenizer: Any) -> None:
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise ValueError(f"LAM needs a fast tokenizer (tokenizer.json), got {type(tokenizer).__name__}.")
        self.backend = tokenizer.backend_tokenizer
        bare = self._encode(["a"], False)[0].ids
        full = self._encode(["a"], True)[0].ids
        at = next(i for i in range(len(full) + 1) if full[i : i + len(bare)] == bare)
        self.opening: list[int] = full[:at]
        self.closing: list[int] = full[at + len(bare) :]
        added = self.backend.get_added_tokens_decoder().values()
        self.added: list[str] = [token.content for token in added]
        normalizer = self.backend.normalizer
        model = self.backend.model
        # Only what BERT's own normalizer, pre-tokenizer and WordPiece do is known to be the same in pieces.
        self.can_cut = (
            type(normalizer).__name__ == "BertNormalizer"
            and normalizer.handle_chinese_chars
            and type(self.backend.pre_tokenizer).__name__ == "BertPreTokenizer"
            and not any(token.single_word or token.normalized for token in added)
        )
        self.can_shorten = type(model).__name__ == "WordPiece" and model.max_input_chars_per_word < 1024

    def _encode(self, texts: list[str], special: bool) -> list[Any]:
        if self.backend.padding is not None:
            self.backend.no_padding()
        if self.backend.truncation is not None:
            self.backend.no_truncation()
        return self.backend.encode_batch(texts, add_special_tokens=special)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The ids of whole texts, special tokens included."""
        return [encoding.ids for encoding in self._encode(texts, True)]

    def pieces(self, text: str) -> Iterator[tuple[int, int]]:
        """Bounds (start, end) of the pieces of a text: the ids of the pieces are those of the text."""
        start = 0
        while self.can_cut and len(text) - start > PIECE:
            cut = self.last_cut(text, start + 1, start + PIECE) or self._first_cut(text, start + PIECE + 1)
            if not cut:
                break
            yield start, cut
            start = cut
        if start < len(text):
            yield start, len(text)

    def last_cut(self, text: str, low: int, high: int) -> int:
        """The last place in low..high where `text` may be cut, 0 if there is none."""
        high = min(high, len(text) - 1)
        while self.can_cut and high >= low:
            begin = max(low, high - 255)
            mark = _CUT.search(text[begin : high + 1][::-1])
            if mark and not self._splits_added(text, high - mark.start()):
                return high - mark.start()
            high = high - mark.start() - 1 if mark else begin - 1
        return 0

    def _first_cut(self, text: str, low: int) -> int:
        for mark in _CUT.finditer(text, low):
            if not self._splits_added(text, mark.start()):
                return mark.start()
        return 0

    def _splits_added(self, text: str, cut: int) -> bool:
        around = ((token, text[max(cut - len(token) + 1, 0) : cut + len(token) - 1]) for token in self.added)
        return any(token in part for token, part in around)

    def piece(self, text: str) -> list[int]:
        """The ids of a piece, without special tokens."""
        return self._encode([self.shorten(text)], False)[0].ids

    def piece_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a piece and the characters [start, end) of each."""
        if len(text) > LONGEST_WORD:
            self._refuse(text)
        encoding = self._encode([text], False)[0]
        return encoding.ids, encoding.offsets

    def shorten(self, text: str) -> str:
        """`text` or, where it holds very long words, a shorter one with the same ids."""
        # A word of more than 100 letters is one unknown token, however many there are.
        if len(text) > PIECE and self.can_shorten:
            text = _LONG_WORD.sub(r"\1", text)
        if len(text) > LONGEST_WORD and self.can_cut:
            self._refuse(text)
        return text

    def _refuse(self, text: str) -> NoReturn:
        raise ValueError(
            f"The text holds {len(text):,} characters, from {text[:40]!r}..., without a space or any other place to "
            f"cut it; at most {LONGEST_WORD:,} can be tokenised at once."
        )

    def segments(self, text: str, size: int, limit: int | None = None) -> Iterator[tuple[list[int], int]]:
        """The ids of a text, special tokens included, in segments of `size` (the last may be shorter).

        Each comes with the number of characters read so far. With `limit`, a longer text is truncated to that many
        tokens, special tokens included.
        """
        room = None if limit is None else limit - len(self.closing)
        waiting = list(self.opening)
        count = len(waiting)
        done = 0
        for start, end in self.pieces(text):
            ids = self.piece(text[start:end])
            done = end
            if room is not None and count + len(ids) > room:
                ids = ids[: max(room - count, 0)]
            waiting = waiting + ids
            count += len(ids)
            while len(waiting) > size:
                yield waiting[:size], done
                waiting = waiting[size:]
            if room is not None and count >= room:
                break
        waiting += self.closing
        while waiting:
            yield waiting[:size], done
            waiting = waiting[size:]


class RunningPool:
    """Pools token states [T, D] that come one segment after the other; the running sum is float64.

    Args:
        mode: "mean", "max" or "lasttoken".

    Attributes:
        count: the number of tokens pooled so far.
        value: [D], their sum, maximum or last state; None before the first.
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.count = 0
        self.value: torch.Tensor | None = None

    def add(self, states: torch.Tensor) -> None:
        """Take in the states [T, D] of the next tokens."""
        if not len(states):
            return
        new = {
            "mean": lambda: states.sum(0, dtype=torch.float64 if states.device.type != "mps" else torch.float32),
            "max": lambda: states.float().amax(0),
            "lasttoken": lambda: states[-1].float(),
        }[self.mode]()
        if self.value is None or self.mode == "lasttoken":
            self.value = new
        else:
            self.value = self.value + new if self.mode == "mean" else torch.maximum(self.value, new)
        self.count += len(states)

    def result(self) -> torch.Tensor:
        """The pooled state [D], float32. Raises ValueError if nothing was added."""
        if self.value is None:
            raise ValueError("There is nothing to pool: no token was read.")
        return (self.value / self.count if self.mode == "mean" else self.value).float()

    def clone(self) -> RunningPool:
        """A copy that shares no memory with this one."""
        copy = RunningPool(self.mode)
        copy.count = self.count
        copy.value = None if self.value is None else self.value.clone()
        return copy


def stream(
    model: LAMModel, segments: Iterable[list[int]], state: LAMState | None = None
) -> Iterator[tuple[torch.Tensor, LAMState]]:
    """Run a LAM over one text in segments. Yields the token states [T, D] of each and the state after it.

    A state that is handed in is checked once, before the first segment: nobody else may change it, or the weights,
    before the text ends.

    Args:
        model: a `LAMModel`.
        segments: the token ids of the text, one segment after the other.
        state: the `LAMState` to go on from, which is updated; a new one if not given.

    Raises:
        RuntimeError: if the model did not carry the state on, so that the text would silently be read in segments that
            know nothing of each other.
    """
    checked = state is None
    state = model.new_state(1) if state is None else state
    seen = int(state.seen[0])
    for ids in segments:
        if not ids:
            continue
        # The state is this function's own: what a version of transformers makes of an output's fields changes nothing.
        out = model(
            input_ids=torch.tensor([ids], device=state.seen.device),
            cache_params=state,
            use_cache=True,
            cache_is_checked=checked,
        )
        checked = True
        seen += len(ids)
        if state.seen.tolist() != [seen]:
            raise RuntimeError(_lost(state.seen.tolist(), seen))
        yield out.last_hidden_state[0], state


def _lost(got: list[int], seen: int) -> str:
    return (
        f"The state counts {got} tokens where {seen} were read: it was not carried from one segment of the text to the "
        "next, and a long text would be embedded wrongly. "
        f"Found with transformers {transformers.__version__} and torch {torch.__version__}; "
        "install versions that LAM was tested with (docs/COMPATIBILITY.md)."
    )
