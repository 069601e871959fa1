"""LAM in FastEmbed, and by way of it in LangChain and Haystack: ONNX, without PyTorch.

    lam export-onnx LAM-base-v1 lam-onnx --precision int8
    pip install fastembed langchain-community fastembed-haystack
    python examples/edge/fastembed_lam.py lam-onnx

FastEmbed pads the texts of a batch to the longest of them: with long texts, give it a small `batch_size`.
"""

import sys
from pathlib import Path
from typing import Any

from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType

NAME = "lam/LAM-base-v1"


def register(name: str = NAME, dimensions: int = 384) -> str:
    """Make LAM known to FastEmbed, once a process. The graph pools and normalises."""
    if all(model["model"].lower() != name.lower() for model in TextEmbedding.list_supported_models()):
        TextEmbedding.add_custom_model(
            model=name,
            pooling=PoolingType.DISABLED,
            normalization=False,
            sources=ModelSource(hf=name),
            dim=dimensions,
            model_file="model.onnx",
        )
    return name


def fastembed_model(folder: str | Path, **options: Any) -> TextEmbedding:
    """FastEmbed's model of an exported folder."""
    return TextEmbedding(register(), specific_model_path=str(folder), **options)


def langchain_embeddings(folder: str | Path, **options: Any) -> Any:
    """LangChain's embeddings; its constructor would look for the model on the Hub, so it is given one."""
    from langchain_community.embeddings import FastEmbedEmbeddings

    return FastEmbedEmbeddings.model_construct(model_name=register(), model=fastembed_model(folder), **options)


def haystack_embedders(folder: str | Path) -> tuple[Any, Any]:
    """Haystack's embedders of queries and of documents."""
    from haystack_integrations.components.embedders.fastembed import FastembedDocumentEmbedder, FastembedTextEmbedder

    place = {"specific_model_path": str(folder)}
    text = FastembedTextEmbedder(model=register(), model_kwargs=place, progress_bar=False)
    return text, FastembedDocumentEmbedder(model=register(), model_kwargs=place, progress_bar=False)


def main() -> None:
    question, *passages = ["Who plays?", "The child plays in the street.", "The library is closed on Mondays."]
    model = fastembed_model(sys.argv[1])
    (query,) = model.query_embed(question)
    for passage, embedding in zip(passages, model.embed(passages), strict=True):
        print(f"{embedding @ query:.3f}  {passage}")


if __name__ == "__main__":
    main()
