"""Other people's clients against `lam serve`, on the questions and passages of the handbook.

    lam serve LAM-base-v1
    python examples/serving/clients.py [http://127.0.0.1:8080]

Each function returns the embeddings of some texts; those whose package is not installed are left out.
"""

import importlib.util
import sys
from collections.abc import Callable

import numpy as np

NAME = "LAM-base-v1"
KEY = "no-key-is-needed-on-this-machine"
TEXTS = ["A man is playing a guitar on the street.", "Someone performs music outdoors.", "My cat sleeps all day."]


def with_openai(url: str, texts: list[str], name: str = NAME) -> np.ndarray:
    """The official client of OpenAI."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key=KEY)
    return np.array([item.embedding for item in client.embeddings.create(model=name, input=texts).data])


def with_huggingface_hub(url: str, texts: list[str], name: str = NAME) -> np.ndarray:
    """TEI's client."""
    from huggingface_hub import InferenceClient

    client = InferenceClient(url)
    return np.concatenate([client.feature_extraction(text) for text in texts])


def with_langchain(url: str, texts: list[str], name: str = NAME) -> np.ndarray:
    """LangChain. Without check_embedding_ctx_length=False it would send the token ids of OpenAI's models."""
    from langchain_openai import OpenAIEmbeddings
    from pydantic import SecretStr

    embeddings = OpenAIEmbeddings(
        base_url=f"{url}/v1", api_key=SecretStr(KEY), model=name, check_embedding_ctx_length=False
    )
    return np.array(embeddings.embed_documents(texts))


def with_llama_index(url: str, texts: list[str], name: str = NAME) -> np.ndarray:
    """LlamaIndex."""
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    embeddings = OpenAILikeEmbedding(api_base=f"{url}/v1", api_key=KEY, model_name=name)
    return np.array(embeddings.get_text_embedding_batch(texts))


def with_haystack(url: str, texts: list[str], name: str = NAME) -> np.ndarray:
    """Haystack."""
    from haystack import Document
    from haystack.components.embedders import OpenAIDocumentEmbedder
    from haystack.utils import Secret

    embedder = OpenAIDocumentEmbedder(
        api_base_url=f"{url}/v1", api_key=Secret.from_token(KEY), model=name, progress_bar=False
    )
    documents = embedder.run([Document(content=text) for text in texts])["documents"]
    return np.array([document.embedding for document in documents])


CLIENTS: dict[str, tuple[str, Callable[..., np.ndarray]]] = {
    "openai": ("openai", with_openai),
    "huggingface_hub": ("huggingface_hub", with_huggingface_hub),
    "langchain": ("langchain_openai", with_langchain),
    "llama_index": ("llama_index.embeddings.openai_like", with_llama_index),
    "haystack": ("haystack", with_haystack),
}


def is_installed(module: str) -> bool:
    """Whether a module can be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
    for client, (module, embed) in CLIENTS.items():
        if not is_installed(module):
            print(f"{client}: not installed")
            continue
        vectors = embed(url, TEXTS)
        print(f"{client}: {vectors.shape}, similarity of the first two {vectors[0] @ vectors[1]:.3f}")


if __name__ == "__main__":
    main()
