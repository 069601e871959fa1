"""Haystack 3: indexing and retrieval pipelines."""

from handbook import read_passages, read_questions

from ..helpers import require

require("haystack", "haystack")
require("haystack_integrations.components.embedders.sentence_transformers", "haystack")
import haystack_pipeline as example


def test_it_finds_in_the_handbook_what_the_model_finds(trained_model, ranked_passages):
    store = example.build_index(trained_model, read_passages())
    assert store.count_documents() == 78
    pipeline = example.build_search(trained_model, store)
    answers = [example.search(pipeline, q["question"]) for q in read_questions()]
    assert answers == ranked_passages


def test_a_pipeline_written_as_text_can_be_read_again(trained_model):
    from haystack import Pipeline

    store = example.build_index(trained_model, ["The library is closed on Mondays."])
    text = example.build_search(trained_model, store).dumps()
    assert "trust_remote_code: true" in text
    assert Pipeline.loads(text).dumps() == text


def test_documented_code(run_documented):
    assert "closed on Mondays" in run_documented("Haystack")
