"""LAM: linear-time sentence and document embeddings for transformers and sentence-transformers.

Importing this package registers LAM with AutoConfig and AutoModel, so that a LAM folder loads without
`trust_remote_code`. The registration and every public name load torch and transformers only when they are used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ._registration import register as _register

__version__ = "0.1.0"

_PUBLIC = {
    "Chunk": "encoding",
    "LAMConfig": "model.configuration_lam",
    "LAMEncoder": "encoding",
    "LAMForMaskedLM": "model.heads_lam",
    "LAMForSequenceClassification": "model.heads_lam",
    "LAMForTokenClassification": "model.heads_lam",
    "LAMModel": "model.modeling_lam",
    "LAMModelOutput": "model.modeling_lam",
    "LAMPreTrainedModel": "model.modeling_lam",
    "LAMPublishedConfig": "published.configuration_lam_published",
    "LAMPublishedModel": "published.modeling_lam_published",
    "LAMSession": "encoding",
    "LAMState": "model.state_lam",
    "LAMTransformer": "model.sentence_transformers_module",
    "chunk_dual_delta_rule": "model.delta_rule_lam",
    "dual_delta_rule": "model.delta_rule_lam",
    "late_chunks": "encoding",
    "quantize": "quantization",
    "recurrent_dual_delta_rule": "model.delta_rule_lam",
}

__all__ = [
    "Chunk",
    "LAMConfig",
    "LAMEncoder",
    "LAMForMaskedLM",
    "LAMForSequenceClassification",
    "LAMForTokenClassification",
    "LAMModel",
    "LAMModelOutput",
    "LAMPreTrainedModel",
    "LAMPublishedConfig",
    "LAMPublishedModel",
    "LAMSession",
    "LAMState",
    "LAMTransformer",
    "chunk_dual_delta_rule",
    "dual_delta_rule",
    "late_chunks",
    "quantize",
    "recurrent_dual_delta_rule",
]

if TYPE_CHECKING:
    from .encoding import Chunk, LAMEncoder, LAMSession, late_chunks
    from .model.configuration_lam import LAMConfig
    from .model.delta_rule_lam import chunk_dual_delta_rule, dual_delta_rule, recurrent_dual_delta_rule
    from .model.heads_lam import LAMForMaskedLM, LAMForSequenceClassification, LAMForTokenClassification
    from .model.modeling_lam import LAMModel, LAMModelOutput, LAMPreTrainedModel
    from .model.sentence_transformers_module import LAMTransformer
    from .model.state_lam import LAMState
    from .published.configuration_lam_published import LAMPublishedConfig
    from .published.modeling_lam_published import LAMPublishedModel
    from .quantization import quantize


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])


_register()
