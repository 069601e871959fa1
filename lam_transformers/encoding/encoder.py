"""LAMEncoder: a LAM folder in one line, without remote code."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..io.loading import load_lam
from .session import LAMSession

if TYPE_CHECKING:
    import torch


class LAMEncoder:
    """Loads a LAM folder with the code of this package (nothing from the folder is executed).

    `model` is the SentenceTransformer inside, for everything that is not here.

    Args:
        path: a LAM folder or Hub id.
        device: as SentenceTransformer's.
        kwargs: as `LAMTransformer.load`.

    Raises:
        OSError: if there is no such folder, or a file of it is damaged.
        ValueError: if it is another model's folder, or its files do not belong together.
    """

    def __init__(self, path: str | os.PathLike[str] = "LAM-base-v1", device: str | None = None, **kwargs: Any) -> None:
        self.model = load_lam(path, device, **kwargs)

    def encode(self, texts: str | list[str], **kwargs: Any) -> Any:
        """Embeddings, [D] of one text, [texts, D] of several; arguments as `SentenceTransformer.encode`."""
        return self.model.encode(texts, **kwargs)

    def similarity(self, first: Any, second: Any) -> torch.Tensor:
        """Cosine similarities [A, B] of two sets of embeddings, or of texts."""
        return self.model.similarity(self._embeddings(first), self._embeddings(second))

    def _embeddings(self, given: Any) -> Any:
        texts = isinstance(given, str) or (isinstance(given, list) and all(isinstance(x, str) for x in given))
        return self.encode([given] if isinstance(given, str) else given) if texts else given

    def encode_stream(self, pieces: Iterable[str]) -> np.ndarray[Any, Any]:
        """The embedding [D] of the text that the pieces make together, in constant memory."""
        session = LAMSession(self.model)
        for piece in pieces:
            session.append(piece)
        return session.embedding()
