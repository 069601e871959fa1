"""LAMEncoder: a LAM folder in one line, without remote code."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..model.checks_lam import check_is_lam, read_json
from .session import LAMSession

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer


def is_own_module(entry: Any) -> bool:
    """Whether an entry of a modules.json names the module of this package."""
    return isinstance(entry, dict) and str(entry.get("type")).split(".")[-1] == "LAMTransformer"


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
        path = os.fspath(path)
        where = {name: kwargs[name] for name in ("revision", "token", "local_files_only") if name in kwargs}
        check_is_lam(path, cache_dir=kwargs.get("cache_folder"), **where)
        try:
            self.model = _load(path, device, kwargs)
        except (OSError, ValueError, ImportError, MemoryError):
            raise
        except Exception as error:  # a damaged tokenizer makes its readers stumble in many ways
            reason = " ".join(str(error).split())[:300]
            raise OSError(f"{path} cannot be loaded ({type(error).__name__}: {reason}); get it again.") from error

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


def _load(path: str, device: str | None, kwargs: dict[str, Any]) -> SentenceTransformer:
    """The SentenceTransformer of a LAM folder; what follows the LAM is what modules.json says, or normalisation."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize
    from sentence_transformers.util import import_from_string, load_file_path

    from ..model.sentence_transformers_module import LAMTransformer

    names = ("revision", "token", "local_files_only", "cache_folder")
    where = {name: kwargs[name] for name in names if name in kwargs}

    def read(name: str, kind: type) -> Any:
        file = load_file_path(path, name, **where)
        return read_json(file, kind) if file else kind()

    settings = read("config_sentence_transformers.json", dict)
    entries = read("modules.json", list)
    modules: list[Any] = [LAMTransformer.load(path, **kwargs)]
    if entries and is_own_module(entries[0]):
        for entry in entries[1:]:
            kind = str(entry.get("type"))
            if not kind.startswith("sentence_transformers."):
                raise ValueError(f"modules.json of {path} names {kind!r}, which is no part of sentence-transformers.")
            folder = str(entry.get("path", ""))
            if os.path.isabs(folder) or ".." in folder.replace("\\", "/").split("/"):
                raise ValueError(f"modules.json of {path} names the folder {folder!r}, which lies outside.")
            module: Any = import_from_string(kind)
            modules.append(module.load(path, subfolder=folder, **where))
    else:
        modules.append(Normalize())
    return SentenceTransformer(
        modules=modules,
        device=device,
        prompts=settings.get("prompts"),
        default_prompt_name=settings.get("default_prompt_name"),
        similarity_fn_name=settings.get("similarity_fn_name"),
    )
