"""What a SentenceTransformer of a LAM folder is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..model.streaming_lam import TextTokenizer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from .encoder import LAMEncoder


class Pipeline:
    """The LAM, its tokenizer and how the model pools, whichever modules the folder names.

    Args:
        model: a SentenceTransformer of a LAM folder, or a `LAMEncoder`.

    Attributes:
        lam: the `LAMModel`.
        tokenizer: a `TextTokenizer`.
        pooling: "mean", "max" or "lasttoken".
        normalised: whether the model's own embeddings have length one.

    Raises:
        ValueError: for anything that is not a SentenceTransformer of a LAM.
    """

    def __init__(self, model: SentenceTransformer | LAMEncoder) -> None:
        modules: Any = getattr(model, "model", model) if type(model).__name__ == "LAMEncoder" else model
        lam: Any = getattr(modules, "transformers_model", None)
        if getattr(getattr(lam, "config", None), "model_type", None) != "lam":
            raise ValueError(
                f"Expected a SentenceTransformer of a LAM folder (or a LAMEncoder), got {type(modules).__name__}: "
                'SentenceTransformer("LAM-base-v1", trust_remote_code=True).'
            )
        self.lam = lam
        self.tokenizer = getattr(modules[0], "text_tokenizer", None) or TextTokenizer(modules.tokenizer)
        modes: list[str] = [module.pooling_mode for module in modules if hasattr(module, "pooling_mode")]
        self.pooling = modes[0] if modes else "mean"
        self.normalised = any(type(module).__name__ == "Normalize" for module in modules)

    def finish(self, pooled: torch.Tensor) -> torch.Tensor:
        """Pooled states [..., D] -> embeddings."""
        return torch.nn.functional.normalize(pooled, dim=-1) if self.normalised else pooled
