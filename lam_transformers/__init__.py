"""LAM: linear-time sentence and document embeddings for transformers and sentence-transformers.

Importing this package registers LAM with AutoConfig and AutoModel, so that a LAM folder loads without
`trust_remote_code`. The registration and every public name load torch and transformers only when they are used.
"""

import importlib
from typing import TYPE_CHECKING

from ._registration import register as _register

__version__ = "0.1.0"

_PUBLIC = {
    "Chunk": "encoding",
    "LAMConfig": "configuration_lam",
    "LAMEncoder": "encoding",
    "LAMForMaskedLM": "heads_lam",
    "LAMForSequenceClassification": "heads_lam",
    "LAMForTokenClassification": "heads_lam",
    "LAMModel": "modeling_lam",
    "LAMModelOutput": "modeling_lam",
    "LAMPreTrainedModel": "modeling_lam",
    "LAMPublishedConfig": "configuration_lam_published",
    "LAMPublishedModel": "modeling_lam_published",
    "LAMSession": "encoding",
    "LAMState": "state_lam",
    "LAMTransformer": "sentence_transformers_module",
    "chunk_dual_delta_rule": "delta_rule_lam",
    "dual_delta_rule": "delta_rule_lam",
    "late_chunks": "encoding",
    "quantize": "quantization",
    "recurrent_dual_delta_rule": "delta_rule_lam",
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
    from .configuration_lam import LAMConfig
    from .configuration_lam_published import LAMPublishedConfig
    from .delta_rule_lam import chunk_dual_delta_rule, dual_delta_rule, recurrent_dual_delta_rule
    from .encoding import Chunk, LAMEncoder, LAMSession, late_chunks
    from .heads_lam import LAMForMaskedLM, LAMForSequenceClassification, LAMForTokenClassification
    from .modeling_lam import LAMModel, LAMModelOutput, LAMPreTrainedModel
    from .modeling_lam_published import LAMPublishedModel
    from .quantization import quantize
    from .sentence_transformers_module import LAMTransformer
    from .state_lam import LAMState


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])


_register()
