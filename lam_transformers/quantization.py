"""Linear layers in int8, for CPUs where that is faster or memory is short."""

from typing import TypeVar

import torch
from torch import nn

from .model.modeling_lam import LAMModel

Quantized = TypeVar("Quantized")


def quantize(model: Quantized) -> Quantized:
    """Turn the large linear layers of a LAM into int8, in place: weights once, activations on the way (torchao).

    A weight has one scale a row, an activation one scale a token: a text's embedding does not depend on its batch.
    (Where the arithmetic before it differs in the last bit, a value may still fall on the other side of a step.)
    The memory, the convolution, the norms and the flux stay in their dtype.

    Args:
        model: a `LAMModel`, or anything that holds one: a `SentenceTransformer`, a `LAMEncoder`.

    Returns:
        The same object.

    Raises:
        ImportError: without the extra `int8`.
        ValueError: if there is no LAM inside, it is not in float32 or bfloat16, or it is in int8 already.
    """
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, PerRow, quantize_
    except ImportError as error:
        raise ImportError("int8 needs the extra `int8` of lam-transformers (torchao).") from error
    holder = model if isinstance(model, nn.Module) else getattr(model, "model", None)
    lams = [x for x in holder.modules() if isinstance(x, LAMModel)] if isinstance(holder, nn.Module) else []
    if not lams:
        raise ValueError(f"There is no LAMModel in this {type(model).__name__}.")
    for lam in lams:
        weight = lam.layers[0].memory.in_proj.weight
        if type(weight.data) is not torch.Tensor:
            raise ValueError("This model is in int8 already.")
        if weight.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"int8 starts from float32 or bfloat16, the model is in {weight.dtype}.")
    config = Int8DynamicActivationInt8WeightConfig(granularity=PerRow(), set_inductor_config=False)
    for lam in lams:
        for layer in lam.layers:
            for part in (layer.memory, layer.feed_forward):
                quantize_(part, config, lambda module, name: name in ("in_proj", "out_proj"))
    return model
