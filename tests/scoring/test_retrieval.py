"""nDCG, and retrieval on data sets in the BEIR layout."""

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the train extra is not installed")

from lam_transformers.scoring.retrieval import evaluate_retrieval, ndcg, read_beir

from .conftest import on_a_circle, write_records


def discounted(gains):
    return sum(gain / np.log2(place + 2) for place, gain in enumerate(gains))


@pytest.mark.parametrize("depth", [1, 3, 10])
@pytest.mark.parametrize("ignore_ties", [False, True])
def test_ndcg_is_its_formula(depth, ignore_ties):
    g = np.random.default_rng(depth)
    scores = g.permuted(np.tile(np.arange(12.0), (5, 1)), axis=1)
    gains = g.integers(0, 4, size=(5, 12)).astype(float)
    want = [
        discounted(gain[np.argsort(-score)][:depth]) / discounted(sorted(gain, reverse=True)[:depth])
        for score, gain in zip(scores, gains, strict=True)
    ]
    assert ndcg(scores, gains, depth, ignore_ties) == pytest.approx(want)


def test_ndcg_of_documents_with_the_same_score_is_the_mean_over_their_orders():
    gains = np.array([[1.0, 0.0, 0.0]])
    assert ndcg(np.zeros((1, 3)), gains, 1) == pytest.approx([1 / 3])
    assert ndcg(np.zeros((1, 3)), gains) == pytest.approx([np.mean(1 / np.log2([2, 3, 4]))])


def test_ndcg_of_a_query_without_a_relevant_document_is_zero():
    assert ndcg(np.array([[0.3, 0.1]]), np.zeros((1, 2))).tolist() == [0.0]


@pytest.fixture
def beir(tmp_path):
    documents = [
        {"_id": "near", "title": "a title", "text": "near"},
        {"_id": "middle", "title": "", "text": "middle"},
        {"_id": "far", "text": "far"},
    ]
    write_records(tmp_path / "corpus.jsonl", documents)
    write_records(tmp_path / "queries.jsonl", [{"_id": n, "text": n} for n in ("one", "two", "nobody asked")])
    rows = ["query-id\tcorpus-id\tscore", "one\tmiddle\t1", "one\tnear\t0", "two\tfar\t2", "two\tnear\t1"]
    (tmp_path / "qrels_test.tsv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_evaluate_retrieval_is_the_mean_ndcg_of_the_queries_with_a_relevant_document(beir):
    angles = {"a title near": 0.1, "middle": 0.5, "far": 1.5, "one": 0.0, "two": 0.05, "nobody asked": 0.0}
    result = evaluate_retrieval(on_a_circle(angles), beir)
    gain = 1 / np.log2(np.arange(2, 5))
    one, two = gain[1] / gain[0], (gain[0] + 2 * gain[2]) / (2 * gain[0] + gain[1])
    assert result == {"ndcg@10": pytest.approx((one + two) / 2), "queries": 2, "documents": 3}
    one, two = 0.0, gain[0] / (2 * gain[0])
    assert evaluate_retrieval(on_a_circle(angles), beir, depth=1)["ndcg@1"] == pytest.approx((one + two) / 2)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels_test.tsv"])
def test_an_incomplete_retrieval_set_is_refused_by_file(beir, name):
    (beir / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        read_beir(beir)
