"""LlamaIndex: long nodes, and nodes with late-chunk embeddings."""

import numpy as np
import pytest
from handbook import HANDBOOK, passage_spans, read_passages, read_questions

from ..helpers import require

require("llama_index.core", "llama-index")
require("llama_index.embeddings.huggingface", "llama-index")
import llama_index_late_chunks
import llama_index_long_nodes
from llama_index.core import Document

from lam_transformers.encoding import late_chunks
from lam_transformers.integrations.llama_index import LateChunkNodeParser


@pytest.fixture(scope="module")
def embeddings(trained_model):
    return llama_index_long_nodes.load_embeddings(trained_model)


@pytest.fixture(scope="module")
def text():
    return HANDBOOK.read_text(encoding="utf-8")


@pytest.mark.slow
def test_long_nodes_of_the_handbook_are_found_as_the_model_finds_them(embeddings, encoder, rank, text):
    index = llama_index_long_nodes.build_index(embeddings, text)
    nodes = [node.get_content() for node in index.docstore.docs.values()]
    assert len(nodes) == 4
    answers = [llama_index_long_nodes.search(index, q["question"]) for q in read_questions()]
    assert answers == rank(nodes, encoder.encode(nodes))


def test_a_long_node_is_embedded_whole(embeddings, encoder, text):
    """The last words of 2,000 tokens count, and the embedding is the one of the whole text."""
    index = llama_index_long_nodes.build_index(embeddings, text)
    node = next(iter(index.docstore.docs.values())).get_content()
    assert len(encoder.tokenizer(node)["input_ids"]) > 1500
    got = np.array(embeddings.get_text_embedding(node))
    assert np.abs(got - encoder.encode(node)).max() < 1e-5
    assert np.abs(got - encoder.encode(node + " Dragons sleep in the boiler room.")).max() > 1e-4
    # What is stored is the embedding of the text, not of something shorter.
    assert np.abs(np.array(index.vector_store.get(next(iter(index.docstore.docs)))) - got).max() < 1e-5


def test_late_chunks_of_the_handbook_are_found_as_the_model_finds_them(trained_model, encoder, rank, text):
    """One pass over the whole handbook."""
    index = llama_index_late_chunks.build_index(trained_model, text, passage_spans)
    answers = [llama_index_late_chunks.search(index, q["question"]) for q in read_questions()]
    chunks = late_chunks(encoder, text, passage_spans(text))
    assert answers == rank(read_passages(), np.stack([chunk.embedding for chunk in chunks]))


def test_nodes_carry_late_chunk_embeddings(encoder, text):
    parser = LateChunkNodeParser(model=encoder, boundaries=passage_spans)
    nodes = parser.get_nodes_from_documents([Document(text=text, metadata={"title": "Handbook"}, id_="handbook")])
    assert [node.text for node in nodes] == read_passages()
    chunks = late_chunks(encoder, text, passage_spans(text))
    for node, chunk in zip(nodes, chunks, strict=True):
        assert (node.start_char_idx, node.end_char_idx) == (chunk.start, chunk.end)
        assert np.abs(np.array(node.embedding) - chunk.embedding).max() < 1e-5
    assert all(node.ref_doc_id == "handbook" and node.metadata["title"] == "Handbook" for node in nodes)
    assert nodes[0].next_node.node_id == nodes[1].node_id
    # The same words after another beginning have another embedding: that is what a late chunk is.
    alone = encoder.encode(nodes[5].text)
    assert np.abs(np.array(nodes[5].embedding) - alone).max() > 1e-3


@pytest.mark.parametrize("boundaries", ["sentence", "paragraph", 64], ids=str)
def test_offsets_are_those_of_the_document(encoder, boundaries):
    text = "It rains. It rains.\n\nNobody came. It rains.\n\nIt rains."
    nodes = LateChunkNodeParser(model=encoder, boundaries=boundaries).get_nodes_from_documents([Document(text=text)])
    assert nodes
    assert all(text[node.start_char_idx : node.end_char_idx] == node.text for node in nodes)
    assert len({node.start_char_idx for node in nodes}) == len(nodes)


def test_a_span_that_reads_like_an_earlier_text_keeps_its_place(encoder):
    text = "It rains. Nobody came. It rains."
    parser = LateChunkNodeParser(model=encoder, boundaries=lambda text: [(10, 22), (23, 32)])
    places = [(n.start_char_idx, n.end_char_idx) for n in parser.get_nodes_from_documents([Document(text=text)])]
    assert places == [(10, 22), (23, 32)]


def test_empty_documents_have_no_nodes(encoder):
    parser = LateChunkNodeParser(model=encoder)
    assert parser.get_nodes_from_documents([Document(text=""), Document(text=" \n\n ")]) == []


def test_documented_code_for_long_nodes(run_documented):
    assert "closed on Mondays" in run_documented("LlamaIndex: long nodes")


def test_documented_code_for_late_chunks(run_documented):
    assert "closed on Mondays" in run_documented("LlamaIndex: late chunks")
