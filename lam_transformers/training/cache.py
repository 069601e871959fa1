"""Embeddings of a teacher, computed once and kept on disk."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from filelock import FileLock

from ..io.loading import load_sentence_transformer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

# What a teacher wants to read before a text, where its own configuration does not say.
PROMPTS = {"intfloat/e5-large-v2": "query: "}


@dataclass
class Teacher:
    """A teacher by name, and how much it counts.

    Attributes:
        name: Hub id or folder of any model that sentence-transformers loads.
        weight: of its cosines among those of all teachers, above 0.
        prompt: put before every text; None for the one it is known to want, or none.
    """

    name: str = "intfloat/e5-large-v2"
    weight: float = 1.0
    prompt: str | None = None

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"The weight of the teacher {self.name} must be above 0, got {self.weight}.")

    def load(self, device: str | None = None) -> "SentenceTransformer":
        """The SentenceTransformer. Raises ValueError, saying why, if it cannot be loaded as one."""
        try:
            model = load_sentence_transformer(self.name, device, dtype=torch.float32)
        except Exception as error:  # whatever is wrong with a stranger's model
            raise ValueError(
                f"The teacher {self.name} does not load with sentence-transformers ({type(error).__name__}: {error}). "
                "Name a Hub id or a folder with modules.json, or a transformers encoder."
            ) from error
        return model.eval().requires_grad_(False)

    @property
    def prefix(self) -> str:
        """What is put before every text."""
        return PROMPTS.get(self.name, "") if self.prompt is None else self.prompt


def text_key(text: str) -> int:
    """64 bits of the BLAKE2 hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def model_key(model: "SentenceTransformer", prefix: str = "", precision: str = "") -> str:
    """Identifies what gives the embeddings: a sample of every weight, where texts are cut, what is put before them."""
    digest = hashlib.sha256(f"{model.max_seq_length} {prefix} {precision}".encode())
    for name, x in model.state_dict().items():
        digest.update(name.encode())
        digest.update(x.flatten()[:: max(x.numel() // 64, 1)].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


class EmbeddingCache:
    """Embeddings on disk, by the hash of their text: float16, memory-mapped, only ever appended to.

    `folder` holds keys.u64 and embeddings.f16 (row i of one belongs to row i of the other) and cache.json. What a kill
    left incomplete at their ends is cut off by the next writer.

    Args:
        folder: of one teacher; made if it is not there.
        dimensions: of the embeddings.

    Raises ValueError if the folder holds embeddings of another size.
    """

    def __init__(self, folder: str | Path, dimensions: int) -> None:
        self.folder = Path(folder)
        self.dimensions = dimensions
        self.folder.mkdir(parents=True, exist_ok=True)
        record = self.folder / "cache.json"
        with FileLock(self.folder / "lock"):  # a process beside this one may begin at the same time
            if not record.exists():
                record.write_text(json.dumps({"dimensions": dimensions}) + "\n")
        kept = json.loads(record.read_text())["dimensions"]
        if kept != dimensions:
            raise ValueError(f"{folder} holds embeddings of {kept} dimensions, not {dimensions}; use another folder.")
        self._keys_file = self.folder / "keys.u64"
        self._rows_file = self.folder / "embeddings.f16"
        self._read()

    def _complete(self) -> int:
        """Embeddings that are wholly on disk."""
        sizes = [path.stat().st_size if path.exists() else 0 for path in (self._keys_file, self._rows_file)]
        return min(sizes[0] // 8, sizes[1] // (2 * self.dimensions))

    def _read(self) -> None:
        count = self._complete()
        keys = np.fromfile(self._keys_file, dtype="<u8", count=count) if count else np.zeros(0, np.uint64)
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]
        shape = (count, self.dimensions)
        self._rows = np.memmap(self._rows_file, dtype="<f2", mode="r", shape=shape) if count else np.zeros(shape, "<f2")

    def __len__(self) -> int:
        return len(self._rows)

    def places(self, keys: np.ndarray) -> np.ndarray:
        """Row of each key, int64, -1 for those that are not there. keys: uint64 [N]."""
        if not len(self):
            return np.full(len(keys), -1)
        nearest = np.searchsorted(self._sorted, keys).clip(max=len(self) - 1)
        return np.where(self._sorted[nearest] == keys, self._order[nearest], -1)

    def rows(self, places: np.ndarray) -> np.ndarray:
        """Embeddings of these rows, float32 [N, dimensions]."""
        return self._rows[places].astype(np.float32)

    def fill(
        self,
        texts: Sequence[str],
        encode: Callable[[list[str]], np.ndarray],
        progress: Callable[[int], None] | None = None,
        block: int = 2048,
    ) -> np.ndarray:
        """Compute and keep what is not there yet, `block` texts at a time; returns the row of each text.

        Args:
            encode: texts -> embeddings [texts, dimensions].
            progress: called with the number of texts done since the last call.

        Raises ValueError if an embedding is not finite.
        """
        keys = np.fromiter((text_key(text) for text in texts), dtype=np.uint64, count=len(texts))
        with FileLock(self.folder / "lock"):
            self._read()
            missing = np.flatnonzero(self.places(keys) < 0)
            missing = missing[np.unique(keys[missing], return_index=True)[1]]
            missing.sort()
            if progress is not None:
                progress(len(texts) - len(missing))
            with self._keys_file.open("ab") as key_file, self._rows_file.open("ab") as row_file:
                key_file.truncate(8 * len(self))
                row_file.truncate(2 * self.dimensions * len(self))
                for start in range(0, len(missing), block):
                    chosen = missing[start : start + block]
                    embeddings = np.asarray(encode([texts[i] for i in chosen]))
                    if not np.isfinite(embeddings).all():
                        bad = int(np.flatnonzero(~np.isfinite(embeddings).all(axis=1))[0])
                        raise ValueError(f"The teacher gives no finite embedding for {texts[chosen[bad]][:80]!r}.")
                    row_file.write(embeddings.astype("<f2").tobytes())
                    row_file.flush()
                    key_file.write(keys[chosen].astype("<u8").tobytes())
                    key_file.flush()
                    if progress is not None:
                        progress(len(chosen))
            self._read()
        return self.places(keys)


def teacher_embeddings(
    teacher: Teacher,
    texts: Sequence[str],
    folder: str | Path,
    bf16: bool = True,
    progress: Callable[[int], None] | None = None,
    batch_size: int = 64,
) -> tuple[EmbeddingCache, np.ndarray]:
    """A teacher's cache under `folder`, holding these texts, and the row of each of them.

    The teacher is loaded; it embeds only what the cache does not have. Embeddings are L2-normalised.

    Args:
        bf16: let the teacher compute in bfloat16, its weights too.
    """
    model = teacher.load()
    dimensions = model.get_embedding_dimension()
    name = "".join(c if c.isalnum() or c in "-." else "_" for c in Path(teacher.name).name)
    key = model_key(model, teacher.prefix, "bf16" if bf16 else "float32")
    cache = EmbeddingCache(Path(folder) / f"{name}-{key}", dimensions)

    if bf16:
        model = model.bfloat16()

    def encode(block: list[str]) -> np.ndarray:
        embeddings = model.encode(
            block,
            prompt=teacher.prefix or None,
            batch_size=batch_size,
            normalize_embeddings=True,
            convert_to_tensor=True,
            show_progress_bar=False,
        )
        return embeddings.float().cpu().numpy()

    return cache, cache.fill(texts, encode, progress)
