"""Haystack 3: indexing and retrieval pipelines."""

from handbook import read_passages, read_questions, recall

from ..helpers import require

require("haystack", "haystack")
require("haystack_integrations.components.embedders.sentence_transformers", "haystack")
import haystack_pipeline as example


def test_handbook(trained_model):
    questions = read_questions()
    store = example.build_index(trained_model, read_passages())
    assert store.count_documents() == 78
    pipeline = example.build_search(trained_model, store)
    found = [example.search(pipeline, q["question"]) for q in questions]
    assert all(len(texts) == 5 for texts in found)
    assert recall(questions, found) >= 0.8


def test_a_pipeline_written_as_text_can_be_read_again(trained_model):
    from haystack import Pipeline

    store = example.build_index(trained_model, ["The library is closed on Mondays."])
    text = example.build_search(trained_model, store).dumps()
    assert "trust_remote_code: true" in text
    assert Pipeline.loads(text).dumps() == text


def test_documented_code(run_documented):
    assert "closed on Mondays" in run_documented("Haystack")
