"""Embeddings and correlations of the evaluation suite."""

import gzip
import json

import numpy as np
import pytest
import torch

from lam_transformers.io.results import write_result
from lam_transformers.scoring.pooling import embed_texts, mean_pool

from ..helpers import assert_close_rms, hidden

pytest.importorskip("scipy", reason="the train extra is not installed")
pytest.importorskip("sklearn", reason="the train extra is not installed")

from lam_transformers.scoring.retrieval import evaluate_retrieval, read_beir
from lam_transformers.scoring.sts import evaluate_sts, read_pairs

TEXTS = [
    "the dog runs in the street",
    "a",
    "the old man plays the guitar and the child sings slowly in the red house of the woman",
    "cat sleeps",
    "",
    "the woman reads a book. the man reads a book; water, river 42",
    "cat sleeps",
]


def write_pairs(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def on_a_circle(angles):
    """An encoder that knows the angle of each text; lengths differ on purpose, since only cosines count."""

    def encode(texts):
        rows = [[np.cos(angles[t]), np.sin(angles[t])] for t in texts]
        return np.array(rows) * (1 + np.arange(len(texts))[:, None])

    return encode


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
    cosines = [0.9, 0.55, 0.3, -0.02]
    angles = {"centre": 0.2} | {f"text {i}": 0.2 + np.arccos(x) for i, x in enumerate(cosines)}
    records = [{"sentence1": "centre", "sentence2": f"text {i}", "score": x} for i, x in enumerate(scores)]
    path = write_pairs(tmp_path / name, records)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    result = evaluate_sts(on_a_circle(angles), path)
    assert result["pairs"] == 4
    assert result["pearson"] == pytest.approx(np.corrcoef(cosines, scores)[0, 1], abs=1e-12)
    assert result["spearman"] == pytest.approx(spearman, abs=1e-4)  # ties share their mean rank


@pytest.mark.parametrize("field", ["sentence1", "sentence2", "score"])
def test_a_record_without_a_field_is_refused_by_name(tmp_path, field):
    record = {"sentence1": "a", "sentence2": "b", "score": 1.0}
    del record[field]
    with pytest.raises(ValueError, match=rf"pairs\.jsonl.*{field}"):
        read_pairs(write_pairs(tmp_path / "pairs.jsonl", [record]))


def test_a_score_that_is_no_number_is_refused(tmp_path):
    record = {"sentence1": "a", "sentence2": "b", "score": None}
    with pytest.raises(ValueError, match=r"pairs\.jsonl.*score"):
        read_pairs(write_pairs(tmp_path / "pairs.jsonl", [record]))


def test_mean_pool_is_the_normalised_mean_over_real_tokens():
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 1, 0]])
    got = mean_pool(x, mask)
    for row in range(2):
        mean = x[row, mask[row] == 1].mean(0)
        assert_close_rms(f"row {row}", got[row], mean / mean.norm(), 1e-6)
    assert_close_rms("without a mask", mean_pool(x), mean_pool(x, torch.ones(2, 5)), 1e-6)
    assert mean_pool(x.bfloat16(), mask).dtype == torch.float32


def test_embeddings_keep_the_order_of_the_texts(tiny_model, tokenizer):
    got = embed_texts(tiny_model, tokenizer, TEXTS)
    assert got.shape == (len(TEXTS), 64)
    assert got.dtype == np.float32
    for text, row in zip(TEXTS, got, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        alone = mean_pool(hidden(tiny_model, ids))[0]
        assert_close_rms(f"{text!r}", torch.from_numpy(row), alone, 1e-5)
    assert np.linalg.norm(got, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-5)


@pytest.mark.parametrize("tokens", [1, 20, 50, 10**6])
def test_embeddings_do_not_depend_on_the_batches(tiny_model, tokenizer, tokens):
    want = torch.from_numpy(embed_texts(tiny_model, tokenizer, TEXTS))
    done = []
    got = embed_texts(tiny_model, tokenizer, TEXTS, tokens_per_batch=tokens, progress=done.append)
    assert_close_rms("embeddings", torch.from_numpy(got), want, 1e-5)
    assert sum(done) == len(TEXTS)
    order = [3, 6, 0, 5, 2, 1, 4]
    moved = embed_texts(tiny_model, tokenizer, [TEXTS[i] for i in order], tokens_per_batch=tokens)
    assert_close_rms("permuted embeddings", torch.from_numpy(moved), want[order], 1e-5)


def test_max_length_cuts_texts_and_nothing_cuts_them_without_it(tiny_model, tokenizer):
    long = " ".join(["the dog runs"] * 40)
    ids = torch.tensor([tokenizer(long)["input_ids"]])
    assert ids.shape[1] == 122
    whole = torch.from_numpy(embed_texts(tiny_model, tokenizer, [long]))
    assert_close_rms("whole text", whole, mean_pool(hidden(tiny_model, ids)), 1e-5)
    cut = torch.from_numpy(embed_texts(tiny_model, tokenizer, [long], max_length=8))
    ids = torch.tensor([tokenizer(long, truncation=True, max_length=8)["input_ids"]])
    assert_close_rms("cut text", cut, mean_pool(hidden(tiny_model, ids)), 1e-5)


def test_no_texts_have_no_embeddings(tiny_model, tokenizer):
    assert embed_texts(tiny_model, tokenizer, []).shape == (0, 64)


@pytest.fixture
def beir(tmp_path):
    documents = [
        {"_id": "near", "title": "a title", "text": "near"},
        {"_id": "middle", "title": "", "text": "middle"},
        {"_id": "far", "text": "far"},
    ]
    write_pairs(tmp_path / "corpus.jsonl", documents)
    write_pairs(tmp_path / "queries.jsonl", [{"_id": n, "text": n} for n in ("one", "two", "nobody asked")])
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


def test_a_result_says_with_what_it_was_measured(tmp_path):
    write_result(tmp_path / "new folder" / "result.json", {"pearson": 0.5})
    record = json.loads((tmp_path / "new folder" / "result.json").read_text())
    assert record["numbers"] == {"pearson": 0.5}
    assert {"command", "commit", "versions", "processor", "threads", "date"} <= record["environment"].keys()
    assert record["environment"]["versions"]["torch"] == torch.__version__
    assert len(list((tmp_path / "new folder").iterdir())) == 1
