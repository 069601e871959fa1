"""An embedding of a text that is still being written."""

import json
import os

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..packing_lam import SEGMENT
from ..state_lam import LAMState, state_shapes
from ..streaming_lam import RunningPool, check_text, stream
from .parts import Parts

_KIND = "lam_session"


class LAMSession:
    """Reads a text as it comes; `embedding()` is that of everything read so far.

    Only the new tokens are computed. The last word waits until it is certain where it ends; `embedding()` reads it and
    the closing token on a copy of the state, so that it equals `encode` of the whole text at any moment.

    Args:
        model: a SentenceTransformer of a LAM folder, or a `LAMEncoder`.
    """

    def __init__(self, model):
        self._parts = Parts(model)
        self._waiting = ""  # characters that are not yet tokens
        self._ids = list(self._parts.tokenizer.opening)  # tokens that are not yet read
        self._pool = RunningPool(self._parts.pooling)
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
    def append(self, text: str) -> "LAMSession":
        """Read more text. Raises ValueError for anything but a string and then changes nothing."""
        text = check_text(text)
        tokenizer, whole = self._parts.tokenizer, self._waiting + text
        # What was waiting could not be cut; it can be only from its last characters on.
        low = max(len(self._waiting) - 64, 1) if self._waiting else 1
        cut = tokenizer.last_cut(whole, low, len(whole) - 1)
        ids: list[int] = []
        for start, end in tokenizer.pieces(whole[:cut]):
            ids += tokenizer.piece(whole[start:end])
        pending = self._ids + ids
        self._waiting, self._characters = tokenizer.shorten(whole[cut:]), self._characters + len(text)
        full = len(pending) - len(pending) % SEGMENT
        self._ids = pending[full:]
        for states, state in stream(self._parts.lam, self._segments(pending[:full]), self._state):
            self._pool.add(states)
            self._state = state
        return self

    @torch.inference_mode()
    def embedding(self) -> np.ndarray:
        """[D] float32: the embedding of everything appended so far; nothing changes."""
        tokenizer, pool = self._parts.tokenizer, self._pool.clone()
        ids = list(self._ids)
        for start, end in tokenizer.pieces(self._waiting):
            ids += tokenizer.piece(self._waiting[start:end])
        state = None if self._state is None else self._state.clone()
        for states, _ in stream(self._parts.lam, self._segments(ids + tokenizer.closing), state):
            pool.add(states)
        return self._parts.finish(pool.result()).cpu().numpy()

    @staticmethod
    def _segments(ids: list[int]):
        return (ids[start : start + SEGMENT] for start in range(0, len(ids), SEGMENT))

    def save(self, path: str | os.PathLike) -> None:
        """Write the session to a safetensors file; the file is replaced only when the new one is complete."""
        tensors = {"ids": torch.tensor(self._ids, dtype=torch.long)}
        if self._state is not None and self._pool.value is not None:
            tensors |= {
                "memory": torch.stack(self._state.memory),
                "conv": torch.stack(self._state.conv),
                "seen": self._state.seen,
                "pooled": self._pool.value,
            }
        about = {"waiting": self._waiting, "characters": self._characters, "pooling": self._pool.mode}
        about |= {"count": self._pool.count, "fingerprint": self._parts.lam.fingerprint()}
        temporary = f"{os.fspath(path)}.tmp"
        tensors = {name: x.detach().contiguous().cpu() for name, x in tensors.items()}
        try:
            save_file(tensors, temporary, {_KIND: json.dumps(about)})
            os.replace(temporary, path)
        except BaseException:
            if os.path.exists(temporary):
                os.remove(temporary)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike, model) -> "LAMSession":
        """Go on from a saved session.

        Raises ValueError if the file is damaged, is no session, or was written by another model.
        """
        session = cls(model)
        lam, device = session._parts.lam, session._parts.lam.device
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                about = json.loads((file.metadata() or {}).get(_KIND, "null"))
                tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged and cannot be read as a session: {error}") from error
        if about is None or "ids" not in tensors:
            raise ValueError(f"{path} is a safetensors file but not a saved LAMSession.")
        if about["fingerprint"] != lam.fingerprint() or about["pooling"] != session._parts.pooling:
            raise ValueError(
                f"{path} was written by another model: fingerprint {about['fingerprint']}, pooling {about['pooling']}; "
                f"this one has {lam.fingerprint()}, {session._parts.pooling}."
            )
        session._waiting, session._characters = about["waiting"], about["characters"]
        session._ids = tensors["ids"].tolist()
        if "memory" in tensors:
            layers = lam.config.num_hidden_layers
            for name, shape in state_shapes(lam.config, 1).items():
                if (got := tuple(tensors[name].shape)) != (layers, *shape):
                    raise ValueError(f"{path} holds {name} of shape {list(got)}, expected {[layers, *shape]}.")
            session._state = LAMState(tensors["memory"], tensors["conv"], tensors["seen"], about["fingerprint"])
            session._pool.value, session._pool.count = tensors["pooled"], about["count"]
        return session
