"""Blocks of texts in, blocks of embeddings out: what both engines run."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..io.loading import load_sentence_transformer
from ..model.checks_lam import check_folder
from .options import EncodeOptions
from .rows import Block, Row

NOT_THE_MODEL = (".md", ".pyc", ".tmp", ".lock")  # endings of files that do not change an embedding


@dataclass(frozen=True)
class ModelSource:
    """Where the model is and what it was when the run began."""

    name: str  # as the caller wrote it
    location: str  # absolute folder or Hub id
    revision: str | None  # commit of the Hub, None for a folder
    fingerprint: str


@dataclass
class Encoded:
    """The embeddings of a block."""

    rows: list[Row]  # of the block, without their texts
    embeddings: np.ndarray | None  # [rows without an error, D], None if there is no such row
    tokens: int  # 0 where the model does not tell
    bytes_read: int


def find_model(name: str) -> ModelSource:
    """A local folder, fingerprinted by SHA-256 of its files, or a model of the Hub, pinned to its present commit.

    Raises OSError if it is neither, or a JSON file of the folder is damaged.
    """
    folder = Path(name)
    if folder.is_dir():
        check_folder(folder)
        return ModelSource(name, str(folder.resolve()), None, fingerprint_folder(folder))
    from huggingface_hub import hf_hub_download

    try:
        commit = Path(hf_hub_download(name, "modules.json")).parent.name
    except Exception as error:
        raise OSError(
            f"{name} is neither a folder here nor a sentence-transformers model of the Hub that can be reached "
            f"({type(error).__name__}: {error}); give --model a folder with a modules.json, such as LAM-base-v1."
        ) from error
    return ModelSource(name, name, commit, f"commit {commit}")


def fingerprint_folder(folder: Path) -> str:
    """SHA-256 over the relative names and the bytes of the files of a model folder; its README does not count."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix not in NOT_THE_MODEL):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            continue
        digest.update(f"{name.as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


class Encoder:
    """A loaded model, called with a block."""

    def __init__(self, model: ModelSource, options: EncodeOptions):
        """Load the model and try it on one text.

        Raises:
            OSError: if the model cannot be loaded, or is not here the one that the run began with.
            ValueError: if it refuses the options, such as a prompt it does not have, or needs code of its own that
                is not trusted.
        """
        if model.revision is None and fingerprint_folder(Path(model.location)) != model.fingerprint:
            raise OSError(
                f"{model.location} is not the model that the run began with; put the same files on every machine."
            )
        self.options = options
        self.model = load_sentence_transformer(
            model.location, options.device, model.revision, options.trust_remote_code
        )
        self._tokens = 0
        self.model[0].register_forward_pre_hook(self._count)
        self.dimensions = self._encode(["text"]).shape[1]
        full = self.model.get_embedding_dimension()
        if options.truncate_dim is not None and full is not None and options.truncate_dim > full:
            raise ValueError(f"truncate_dim is {options.truncate_dim}, {model.name} has {full} dimensions; give fewer.")

    def _count(self, module, arguments: tuple) -> None:
        """Adds up the real tokens of what the first module is given, as far as it can be seen."""
        features: Any = arguments[0] if arguments else {}
        mask, ids = features.get("attention_mask"), features.get("input_ids")
        if torch.is_tensor(mask):
            self._tokens += int(mask.sum())
        elif torch.is_tensor(ids):
            self._tokens += ids.numel()

    def __call__(self, block: Block) -> Encoded:
        """The embeddings of the rows that have a text; a row whose text the model refuses gets the reason."""
        self._tokens = 0
        rows = block.rows
        good = [i for i, row in enumerate(rows) if row.error is None]
        try:
            embeddings = self._encode([rows[i].text for i in good]) if good else None
        except ValueError:
            self._tokens = 0
            rows, embeddings = self._one_by_one(rows)
        if embeddings is not None and not (finite := np.isfinite(embeddings).all(1)).all():
            good = [i for i, row in enumerate(rows) if row.error is None]
            rows = list(rows)
            for i, ok in zip(good, finite, strict=True):
                if not ok:
                    rows[i] = rows[i]._replace(error=f"the embedding is not finite in {self.options.precision}")
            embeddings = embeddings[finite] if finite.any() else None
        return Encoded([row._replace(text=None) for row in rows], embeddings, self._tokens, block.bytes_read)

    def _one_by_one(self, rows: list[Row]) -> tuple[list[Row], np.ndarray | None]:
        """Finds the texts that the model refuses."""
        done, found = list(rows), []
        for i, row in enumerate(rows):
            if row.error is None:
                try:
                    found.append(self._encode([row.text]))
                except ValueError as error:
                    done[i] = row._replace(error=f"the model refuses the text ({error})")
        return done, np.concatenate(found) if found else None

    def _encode(self, texts: list[str | None]) -> np.ndarray:
        """Embeddings [texts, D] in the precision of the options."""
        options = self.options
        bits = options.precision if options.precision in ("binary", "ubinary") else "float32"
        found = self.model.encode(
            texts, batch_size=options.batch_size, prompt_name=options.prompt_name, precision=bits,
            normalize_embeddings=options.normalize, truncate_dim=options.truncate_dim, show_progress_bar=False,
        )  # fmt: skip
        with np.errstate(over="ignore"):  # a value too large becomes infinite, and that is looked for
            return found.astype(np.float16) if options.precision == "float16" else found


def encode_locally(model: ModelSource, options: EncodeOptions, blocks: Iterator[Block]) -> Iterator[Encoded]:
    """The engine of this process: one block after the other."""
    encoder = Encoder(model, options)
    return map(encoder, blocks)
