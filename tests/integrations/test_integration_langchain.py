"""LangChain: HuggingFaceEmbeddings, FAISS and Chroma."""

import numpy as np
import pytest
from handbook import read_passages, read_questions

from ..helpers import require

for module in ("langchain_huggingface", "langchain_community", "langchain_chroma", "faiss"):
    require(module, "langchain")
import langchain_faiss_chroma as example


@pytest.fixture(scope="module")
def embeddings(trained_model):
    return example.load_embeddings(trained_model)


@pytest.mark.parametrize("name", ["faiss", "chroma"])
def test_it_finds_in_the_handbook_what_the_model_finds(embeddings, ranked_passages, tmp_path, name):
    passages = read_passages()
    if name == "faiss":
        store = example.build_faiss(embeddings, passages)
    else:
        store = example.build_chroma(embeddings, passages, str(tmp_path))
    answers = [example.search(store, q["question"]) for q in read_questions()]
    assert answers == ranked_passages


def test_embeddings_are_the_models_own(embeddings, encoder):
    """Also where LangChain turns newlines into spaces: to this tokenizer both are white space."""
    texts = ["The library opens\nat nine.", "A handbell\n\nis rung.", "one line"]
    assert np.abs(np.array(embeddings.embed_documents(texts)) - encoder.encode_document(texts)).max() < 1e-5
    assert np.abs(np.array(embeddings.embed_query(texts[0])) - encoder.encode_query(texts[0])).max() < 1e-5


def test_documented_code(run_documented):
    assert run_documented("LangChain").count("closed on Mondays") == 2
