"""LAMEncoder: a LAM folder in one line, without remote code."""

import os
from collections.abc import Iterable

import numpy as np

from ..io.loading import load_lam
from .session import LAMSession


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

    def __init__(self, path: str | os.PathLike = "LAM-base-v1", device: str | None = None, **kwargs):
        self.model = load_lam(path, device, **kwargs)

    def encode(self, texts: str | list[str], **kwargs) -> np.ndarray:
        """[D] for one text, [texts, D] for several; arguments as `SentenceTransformer.encode`."""
        return self.model.encode(texts, **kwargs)

    def similarity(self, first, second):
        """Cosine similarities [A, B] of two sets of embeddings, or of texts."""
        first, second = (self._embeddings(x) for x in (first, second))
        return self.model.similarity(first, second)

    def _embeddings(self, given):
        texts = isinstance(given, str) or (isinstance(given, list) and all(isinstance(x, str) for x in given))
        return self.encode([given] if isinstance(given, str) else given) if texts else given

    def encode_stream(self, pieces: Iterable[str]) -> np.ndarray:
        """[D]: the embedding of the text that the pieces make together, in constant memory."""
        session = LAMSession(self.model)
        for piece in pieces:
            session.append(piece)
        return session.embedding()
