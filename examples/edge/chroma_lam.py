"""LAM as the embedding function of a Chroma collection: ONNX, without PyTorch, texts of any length.

    lam export-onnx LAM-base-v1 lam-onnx --precision int8
    pip install chromadb
    python examples/edge/chroma_lam.py lam-onnx

Chroma's own default, an ONNX all-MiniLM-L6-v2, has 384 dimensions, too, and cuts texts after 256 tokens.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import chromadb
from chromadb.api.types import Documents, EmbeddingFunction, Embeddings
from chromadb.utils.embedding_functions import register_embedding_function


@register_embedding_function
class LAMEmbeddingFunction(EmbeddingFunction[Documents]):
    """Embeds documents with the LAM in an exported folder.

    A collection remembers the folder, so that it opens again with the same model.
    """

    def __init__(self, folder: str) -> None:
        spec = importlib.util.spec_from_file_location("lam_onnx", Path(folder) / "lam_onnx.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.folder = str(folder)
        self.encoder = module.Encoder(folder)

    def __call__(self, input: Documents) -> Embeddings:
        return list(self.encoder.encode(input))

    @staticmethod
    def name() -> str:
        return "lam"

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> "LAMEmbeddingFunction":
        return LAMEmbeddingFunction(config["folder"])

    def get_config(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def default_space(self) -> str:
        return "cosine"

    def supported_spaces(self) -> list[str]:
        return ["cosine", "l2", "ip"]


def main() -> None:
    collection = chromadb.EphemeralClient().create_collection(
        "handbook", embedding_function=LAMEmbeddingFunction(sys.argv[1])
    )
    collection.add(ids=["1", "2"], documents=["The child plays in the street.", "The library is closed on Mondays."])
    print(collection.query(query_texts=["Who plays?"], n_results=1)["documents"])


if __name__ == "__main__":
    main()
