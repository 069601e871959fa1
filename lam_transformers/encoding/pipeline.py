"""What a SentenceTransformer of a LAM folder is made of."""

from typing import Any

import torch

from ..model.streaming_lam import TextTokenizer


class Parts:
    """The LAM, its tokenizer and how the model pools, whichever modules the folder names.

    Attributes:
        lam: the `LAMModel`.
        tokenizer: a `TextTokenizer`.
        pooling: "mean", "max" or "lasttoken".
        normalised: whether the model's own embeddings have length one.

    Raises ValueError for anything that is not a SentenceTransformer of a LAM.
    """

    def __init__(self, model):
        model = getattr(model, "model", model) if type(model).__name__ == "LAMEncoder" else model
        lam: Any = getattr(model, "transformers_model", None)
        if getattr(getattr(lam, "config", None), "model_type", None) != "lam":
            raise ValueError(
                f"Expected a SentenceTransformer of a LAM folder (or a LAMEncoder), got {type(model).__name__}: "
                'SentenceTransformer("LAM-base-v1", trust_remote_code=True).'
            )
        self.lam = lam
        self.tokenizer = getattr(model[0], "text_tokenizer", None) or TextTokenizer(model.tokenizer)
        modes = [module.pooling_mode for module in model if hasattr(module, "pooling_mode")]
        self.pooling = modes[0] if modes else "mean"
        self.normalised = any(type(module).__name__ == "Normalize" for module in model)

    def finish(self, pooled: torch.Tensor) -> torch.Tensor:
        """[..., D] pooled states -> embeddings."""
        return torch.nn.functional.normalize(pooled, dim=-1) if self.normalised else pooled
