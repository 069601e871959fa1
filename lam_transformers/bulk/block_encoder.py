"""Blocks of texts in, blocks of embeddings out: what both engines run."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..io.loading import PinnedModel, folder_identity, load_sentence_transformer
from .options import EncodeOptions
from .rows import Block, Row


@dataclass
class Encoded:
    """The embeddings of a block.

    Attributes:
        rows: of the block, without their texts.
        embeddings: [rows without an error, D]; None if there is no such row.
        tokens: of the texts; 0 where the model does not tell.
        bytes_read: see `Block`.
    """

    rows: list[Row]
    embeddings: np.ndarray | None
    tokens: int
    bytes_read: int


class BlockEncoder:
    """A loaded model, called with a block."""

    def __init__(self, model: PinnedModel, options: EncodeOptions):
        """Load the model and try it on one text.

        Args:
            model: where it is, and what it has to be.
            options: of the run.

        Raises:
            OSError: if the model cannot be loaded, or is not here the one that the run began with.
            ValueError: if it refuses the options, such as a prompt it does not have, or needs code of its own that
                is not trusted.
        """
        if model.revision is None and folder_identity(model.location) != model.identity:
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

    def _count(self, module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        """Adds up the real tokens of what the first module is given, as far as it can be seen."""
        features: Any = arguments[0] if arguments else {}
        mask = features.get("attention_mask")
        ids = features.get("input_ids")
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
        done = list(rows)
        embeddings = []
        for i, row in enumerate(rows):
            if row.error is None:
                try:
                    embeddings.append(self._encode([row.text]))
                except ValueError as error:
                    done[i] = row._replace(error=f"the model refuses the text ({error})")
        return done, np.concatenate(embeddings) if embeddings else None

    def _encode(self, texts: list[str | None]) -> np.ndarray:
        """Embeddings [texts, D] in the precision of the options."""
        options = self.options
        bits = options.precision if options.precision in ("binary", "ubinary") else "float32"
        embeddings = self.model.encode(
            texts,
            batch_size=options.batch_size,
            prompt_name=options.prompt_name,
            precision=bits,
            normalize_embeddings=options.normalize,
            truncate_dim=options.truncate_dim,
            show_progress_bar=False,
        )
        with np.errstate(over="ignore"):  # a value too large becomes infinite, and that is looked for
            return embeddings.astype(np.float16) if options.precision == "float16" else embeddings


def encode_locally(model: PinnedModel, options: EncodeOptions, blocks: Iterator[Block]) -> Iterator[Encoded]:
    """The engine of this process: one block after the other."""
    return map(BlockEncoder(model, options), blocks)
