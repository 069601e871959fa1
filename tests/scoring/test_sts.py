"""Correlations of similarities with human scores."""

import gzip

import numpy as np
import pytest

pytest.importorskip("scipy", reason="the train extra is not installed")

from lam_transformers.scoring.sts import cosines, evaluate_sts, read_pairs, spread

from .conftest import on_a_circle, write_records


@pytest.mark.parametrize(
    "scores, spearman",
    [
        ([4.0, 3.0, 2.0, 1.0], 1.0),
        ([1.0, 2.0, 3.0, 4.0], -1.0),
        ([5.0, 5.0, 1.0, 1.0], 0.8944),
        ([0.0, 5.0, 5.0, 0.0], 0.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_evaluate_sts_correlates_cosines_with_scores(tmp_path, name, scores, spearman):
    similarities = [0.9, 0.55, 0.3, -0.02]
    angles = {"centre": 0.2} | {f"text {i}": 0.2 + np.arccos(x) for i, x in enumerate(similarities)}
    records = [{"sentence1": "centre", "sentence2": f"text {i}", "score": x} for i, x in enumerate(scores)]
    path = write_records(tmp_path / name, records)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    result = evaluate_sts(on_a_circle(angles), path)
    assert result["pairs"] == 4
    assert result["pearson"] == pytest.approx(np.corrcoef(similarities, scores)[0, 1], abs=1e-12)
    assert result["spearman"] == pytest.approx(spearman, abs=1e-4)  # ties share their mean rank


@pytest.mark.parametrize("field", ["sentence1", "sentence2", "score"])
def test_a_record_without_a_field_is_refused_by_name(tmp_path, field):
    record = {"sentence1": "a", "sentence2": "b", "score": 1.0}
    del record[field]
    with pytest.raises(ValueError, match=rf"pairs\.jsonl.*{field}"):
        read_pairs(write_records(tmp_path / "pairs.jsonl", [record]))


def test_a_score_that_is_no_number_is_refused(tmp_path):
    record = {"sentence1": "a", "sentence2": "b", "score": None}
    with pytest.raises(ValueError, match=r"pairs\.jsonl.*score"):
        read_pairs(write_records(tmp_path / "pairs.jsonl", [record]))


def test_a_file_without_a_pair_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"pairs\.jsonl holds no pair"):
        read_pairs(write_records(tmp_path / "pairs.jsonl", []))


def test_cosines_do_not_depend_on_lengths_and_zero_vectors_are_like_nothing():
    first = np.array([[2.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    second = np.array([[0.0, 3.0], [5.0, 5.0], [1.0, 2.0]])
    assert cosines(np.concatenate([first, second])) == pytest.approx([0, 1, 0])


@pytest.mark.parametrize(
    "count, kept",
    [(None, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 2, 4]), (7, [0, 1, 2, 3, 4, 5, 6]), (9, [0, 1, 2, 3, 4, 5, 6])],
)
def test_pairs_are_spread_over_the_file(count, kept):
    scores = np.arange(7.0)
    texts = [str(i) for i in range(7)]
    first, second, chosen = spread((texts, texts[::-1], scores), count)
    assert first == [str(i) for i in kept]
    assert second == [str(6 - i) for i in kept]
    assert chosen.tolist() == kept


def test_leading_dimensions_and_intervals_are_scored_when_asked_for(tmp_path):
    g = np.random.default_rng(0)
    vectors = {f"text {i}": g.normal(size=8) for i in range(60)}
    records = [
        {
            "sentence1": f"text {i}",
            "sentence2": f"text {i + 1}",
            "score": float(vectors[f"text {i}"][:4] @ vectors[f"text {i + 1}"][:4]),
        }
        for i in range(59)
    ]
    path = write_records(tmp_path / "pairs.jsonl", records)
    result = evaluate_sts(
        lambda texts: np.stack([vectors[text] for text in texts]), path, dimensions=(4,), resamples=50
    )
    assert set(result) == {
        "pairs",
        "pearson",
        "spearman",
        "pearson_interval",
        "spearman_interval",
        "pearson@4",
        "spearman@4",
    }
    assert result["pearson@4"] > result["pearson"]
    low, high = result["pearson_interval"]
    assert low < result["pearson"] < high
