"""An embedding of a text that is still being written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..model.packing_lam import SEGMENT
from ..model.state_lam import MOST, LAMState, device_of, load_tensors, save_tensors, state_shapes, wrote
from ..model.streaming_lam import RunningPool, check_text, stream
from .pipeline import Pipeline

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from ..model.modeling_lam import LAMModel
    from .encoder import LAMEncoder

_KIND = "lam_session"


class LAMSession:
    """Reads a text as it comes; `embedding()` is that of everything read so far.

    Only the new tokens are computed. The last word waits until it is certain where it ends; `embedding()` reads it and
    the closing token on a copy of the state, so that it equals `encode` of the whole text at any moment.

    Args:
        model: a SentenceTransformer of a LAM folder, or a `LAMEncoder`.
    """

    def __init__(self, model: SentenceTransformer | LAMEncoder) -> None:
        self._pipeline = Pipeline(model)
        self._waiting = ""  # characters that are not yet tokens
        self._ids = list(self._pipeline.tokenizer.opening)  # tokens that are not yet read
        self._pool = RunningPool(self._pipeline.pooling)
        self._state: LAMState | None = None
        self._characters = 0

    @property
    def characters(self) -> int:
        """Characters appended so far."""
        return self._characters

    @property
    def tokens(self) -> int:
        """Tokens read so far, the opening one included and the last word left out."""
        return self._pool.count + len(self._ids)

    @torch.inference_mode()
    def append(self, text: str) -> LAMSession:
        """Read more text. Raises ValueError for anything but a string; after any exception nothing has changed."""
        text = check_text(text)
        tokenizer = self._pipeline.tokenizer
        whole = self._waiting + text
        # What was waiting could not be cut; it can be only from its last characters on.
        low = max(len(self._waiting) - 64, 1) if self._waiting else 1
        cut = tokenizer.last_cut(whole, low, len(whole) - 1)
        ids: list[int] = []
        for start, end in tokenizer.pieces(whole[:cut]):
            ids += tokenizer.piece(whole[start:end])
        pending = self._ids + ids
        full = len(pending) - len(pending) % SEGMENT
        # All is computed on copies and taken over in one step: text counts as read only when its tokens are.
        after: dict[str, Any] = {
            "_waiting": tokenizer.shorten(whole[cut:]),
            "_characters": self._characters + len(text),
            "_ids": pending[full:],
        }
        if full:
            state = self._pipeline.lam.new_state(1) if self._state is None else self._state.clone()
            pool = self._pool.clone()
            for states, _ in stream(self._pipeline.lam, self._segments(pending[:full]), state):
                pool.add(states)
            after |= {"_state": state, "_pool": pool}
        vars(self).update(after)
        return self

    @torch.inference_mode()
    def embedding(self) -> np.ndarray[Any, Any]:
        """The embedding [D], float32, of everything appended so far; nothing changes."""
        tokenizer = self._pipeline.tokenizer
        pool = self._pool.clone()
        ids = list(self._ids)
        for start, end in tokenizer.pieces(self._waiting):
            ids += tokenizer.piece(self._waiting[start:end])
        state = None if self._state is None else self._state.clone()
        for states, _ in stream(self._pipeline.lam, self._segments(ids + tokenizer.closing), state):
            pool.add(states)
        embedding: np.ndarray[Any, Any] = self._pipeline.finish(pool.result()).cpu().numpy()
        return embedding

    @staticmethod
    def _segments(ids: list[int]) -> Iterator[list[int]]:
        return (ids[start : start + SEGMENT] for start in range(0, len(ids), SEGMENT))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the session to a safetensors file with its own SHA-256; replaced only when the new one is complete."""
        tensors = {"ids": torch.tensor(self._ids, dtype=torch.long)}
        if self._state is not None and self._pool.value is not None:
            tensors |= {
                "memory": torch.stack(self._state.memory),
                "conv": torch.stack(self._state.conv),
                "seen": self._state.seen,
                "pooled": self._pool.value,
            }
        about = {"waiting": self._waiting, "characters": self._characters, "pooling": self._pool.mode}
        about |= {"count": self._pool.count, "fingerprint": self._pipeline.lam.fingerprint()}
        save_tensors(tensors, path, _KIND, json.dumps(about))

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: SentenceTransformer | LAMEncoder) -> LAMSession:
        """Go on from a saved session.

        Raises ValueError if the file is damaged, is no session, or was written by another model.
        """
        session = cls(model)
        tensors, text = load_tensors(path, _KIND, "LAMSession")
        try:
            about = json.loads(text)
            waiting = about["waiting"]
            characters = about["characters"]
            count = about["count"]
            fingerprint = about["fingerprint"]
            pooling = about["pooling"]
            ids = tensors["ids"].tolist()
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is damaged and cannot be read as a LAMSession: {error!r}.") from error
        lam = session._pipeline.lam
        if not wrote(lam, fingerprint) or pooling != session._pipeline.pooling:
            raise ValueError(
                f"{path} was written by another model: fingerprint {fingerprint}, pooling {pooling}; "
                f"this one has {lam.fingerprint()}, {session._pipeline.pooling}."
            )
        if reason := _damage(lam, tensors, waiting, characters, count):
            raise ValueError(f"{path} is damaged and cannot be read as a LAMSession: {reason}.")
        session._waiting = waiting
        session._characters = characters
        session._ids = ids
        if "memory" in tensors:
            tensors = {name: x.to(device_of(lam)) for name, x in tensors.items()}
            session._state = LAMState(tensors["memory"], tensors["conv"], tensors["seen"], lam.fingerprint())
            session._pool.value = tensors["pooled"]
            session._pool.count = count
        return session


def _damage(
    lam: LAMModel, tensors: dict[str, torch.Tensor], waiting: object, characters: object, count: object
) -> str | None:
    """What is wrong with the parts of a saved session, or None."""
    if not isinstance(waiting, str) or not isinstance(characters, int) or not len(waiting) <= characters <= MOST:
        return f"characters is {characters!r}"
    ids = tensors["ids"]
    if ids.dtype != torch.int64 or ids.ndim != 1 or (ids.numel() and not 0 <= ids.min() <= ids.max() < _words(lam)):
        return f"ids are {ids.dtype} {list(ids.shape)} or beyond the {_words(lam)} that the model knows"
    if set(tensors) == {"ids"}:
        return None if count == 0 else f"count is {count!r} without a state"
    if set(tensors) != {"ids", "memory", "conv", "seen", "pooled"}:
        return f"it holds {sorted(tensors)}"
    shapes = {name: (lam.config.num_hidden_layers, *shape) for name, shape in state_shapes(lam.config, 1).items()}
    shapes |= {"seen": (1,), "pooled": (lam.config.hidden_size,)}
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            return f"{name} is {list(tensors[name].shape)}, expected {list(shape)}"
    if reason := LAMState(tensors["memory"], tensors["conv"], tensors["seen"], "").damage():
        return reason
    if not tensors["pooled"].is_floating_point() or not tensors["pooled"].isfinite().all():
        return "pooled holds NaN or infinity or is no number"
    if tensors["seen"].tolist() != [count]:
        return f"count is {count!r}, the state has seen {tensors['seen'].tolist()}"
    return None


def _words(lam: LAMModel) -> int:
    return lam.embeddings.word_embeddings.num_embeddings
