"""An exported folder in FastEmbed, Chroma, LangChain and Haystack: examples/edge."""

import importlib.util

import numpy as np
import pytest
from handbook import ROOT

TEXTS = ["the man plays", "", "the old dog sleeps in the house " * 9, "a cat"]


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples/edge" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def fastembed_lam():
    pytest.importorskip("fastembed", reason="fastembed is not installed")
    return example("fastembed_lam")


@pytest.fixture(scope="module")
def want(encoder):
    return encoder.encode(TEXTS)


def test_fastembed(fastembed_lam, two_way, want):
    model = fastembed_lam.fastembed_model(two_way.folder)
    np.testing.assert_allclose(list(model.embed(TEXTS)), want, atol=1e-5)
    np.testing.assert_allclose(next(iter(model.query_embed(TEXTS[0]))), want[0], atol=1e-5)
    again = fastembed_lam.fastembed_model(two_way.folder, threads=1)
    np.testing.assert_allclose(list(again.embed(TEXTS, batch_size=1)), want, atol=1e-5)


def test_langchain(fastembed_lam, two_way, want):
    pytest.importorskip("langchain_community", reason="langchain-community is not installed")
    embeddings = fastembed_lam.langchain_embeddings(two_way.folder)
    np.testing.assert_allclose(embeddings.embed_documents(TEXTS), want, atol=1e-5)
    np.testing.assert_allclose(embeddings.embed_query(TEXTS[0]), want[0], atol=1e-5)


def test_haystack(fastembed_lam, two_way, want):
    haystack = pytest.importorskip("haystack", reason="haystack is not installed")
    pytest.importorskip(
        "haystack_integrations.components.embedders.fastembed", reason="fastembed-haystack is not there"
    )
    text, documents = fastembed_lam.haystack_embedders(two_way.folder)
    for embedder in (text, documents):
        embedder.warm_up()
    np.testing.assert_allclose(text.run(TEXTS[0])["embedding"], want[0], atol=1e-5)
    given = documents.run([haystack.Document(content=text) for text in TEXTS])["documents"]
    np.testing.assert_allclose([document.embedding for document in given], want, atol=1e-5)


def test_chroma(two_way, want, tmp_path):
    chromadb = pytest.importorskip("chromadb", reason="chromadb is not installed")
    function = example("chroma_lam").LAMEmbeddingFunction(str(two_way.folder))
    client = chromadb.PersistentClient(str(tmp_path))
    collection = client.create_collection("texts", embedding_function=function)
    collection.add(ids=list("abcd"), documents=TEXTS)
    np.testing.assert_allclose(collection.get(include=["embeddings"])["embeddings"], want, atol=1e-5)
    assert collection.query(query_texts=[TEXTS[3]], n_results=1)["ids"] == [["d"]]
    # The collection knows its function.
    again = chromadb.PersistentClient(str(tmp_path)).get_collection("texts")
    assert again.query(query_texts=[TEXTS[2]], n_results=1)["ids"] == [["c"]]
