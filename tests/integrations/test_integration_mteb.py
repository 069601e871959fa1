"""MTEB gives the numbers of LAM's own evaluation, on a tiny model and, where weights and data are, on the real ones."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from handbook import read_questions, recall

from lam_transformers.checkpoints.export import export_model

from ..conftest import WORDS
from ..helpers import require

require("mteb", "mteb")
import mteb_evaluate

from lam_transformers.evaluation.mteb import TRAINING_TEXTS, beir_task, lam_meta, stsbenchmark
from lam_transformers.scoring.retrieval import evaluate_retrieval
from lam_transformers.scoring.sts import evaluate_sts

# MTEB rounds the measures of retrieval to five digits.
ROUNDED = 1e-5


@pytest.fixture(scope="module")
def data():
    folder = os.environ.get("LAM_DATA_DIR")
    if not folder:
        pytest.skip("LAM_DATA_DIR names no folder with sts/stsb_test.jsonl.gz and retrieval/cranfield")
    return Path(folder)


@pytest.fixture
def exported(tiny_folder, tmp_path):
    export_model(tiny_folder, tmp_path / "exported", torch.float32)
    return str(tmp_path / "exported")


def encode_with(folder):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(folder, trust_remote_code=True).encode


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def sentences(count, seed=0):
    g = np.random.default_rng(seed)
    return [" ".join(g.choice(WORDS, size=g.integers(3, 12))) for _ in range(count)]


def assert_same_sts(got, want):
    assert got["cosine_spearman"] == pytest.approx(want["spearman"], abs=1e-5)
    assert got["cosine_pearson"] == pytest.approx(want["pearson"], abs=1e-6)


def test_sts_is_our_own(exported, tmp_path):
    pairs = zip(sentences(40, 1), sentences(40, 2), np.linspace(0, 5, 40), strict=True)
    records = [{"sentence1": a, "sentence2": b, "score": s} for a, b, s in pairs]
    path = write_lines(tmp_path / "pairs.jsonl", records)
    got = mteb_evaluate.evaluate(exported, [stsbenchmark(path)])["STSBenchmark"]
    assert_same_sts(got, evaluate_sts(encode_with(exported), path))


def test_retrieval_is_our_own(exported, tmp_path):
    """With titles, graded and negative relevance, documents nobody has, queries without a relevant document."""
    texts, g = sentences(60), np.random.default_rng(3)
    corpus = [{"_id": str(i), "title": "old books" if i % 2 else "", "text": text} for i, text in enumerate(texts)]
    write_lines(tmp_path / "corpus.jsonl", corpus)
    write_lines(tmp_path / "queries.jsonl", [{"_id": f"q{i}", "text": t} for i, t in enumerate(sentences(15, 4))])
    rows = [f"q{i}\t{d}\t{g.integers(1, 4)}" for i in range(12) for d in g.choice(60, size=4, replace=False)]
    rows += ["q12\t5\t0", "q13\t7\t-1", "q0\tnowhere\t0", "unasked\t3\t1"]
    (tmp_path / "qrels_test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]) + "\n")
    got = mteb_evaluate.evaluate(exported, [beir_task("Toy", tmp_path)])["Toy"]
    want = evaluate_retrieval(encode_with(exported), tmp_path)
    assert want["queries"] == 12
    assert got["ndcg_at_10"] == pytest.approx(want["ndcg@10"], abs=ROUNDED)
    assert 0.05 < want["ndcg@10"] < 0.95


def test_meta_describes_the_folder(exported, tiny_model, make_model, tokenizer, tmp_path):
    meta = lam_meta(exported)
    assert meta.name == "LAM/exported"
    assert meta.n_parameters == sum(p.numel() for p in tiny_model.parameters())
    assert (meta.embed_dim, meta.max_tokens) == (64, math.inf)
    model = meta.load_model(device="cpu")
    assert model.mteb_model_meta.revision == meta.revision
    other = tmp_path / "other"
    make_model(seed=1).save_pretrained(other)
    tokenizer.save_pretrained(other)
    export_model(other, other, torch.float32)
    assert lam_meta(other).revision != meta.revision


def test_training_texts_are_names_that_mteb_knows():
    import mteb

    for name in TRAINING_TEXTS:
        assert mteb.get_task(name).metadata.name == name


def test_it_finds_in_the_handbook_what_the_model_finds(trained_model, ranked_passages):
    scores = mteb_evaluate.evaluate(trained_model, [mteb_evaluate.handbook_task()])["Handbook"]
    assert scores["recall_at_5"] == pytest.approx(recall(read_questions(), ranked_passages), abs=ROUNDED)


def test_stsbenchmark_on_real_data_is_our_own(trained_model, data):
    path = data / "sts/stsb_test.jsonl.gz"
    got = mteb_evaluate.evaluate(trained_model, [stsbenchmark(path)])["STSBenchmark"]
    assert_same_sts(got, evaluate_sts(encode_with(trained_model), path))


@pytest.mark.slow
def test_cranfield_is_our_own(trained_model, data):
    folder = data / "retrieval/cranfield"
    got = mteb_evaluate.evaluate(trained_model, [beir_task("Cranfield", folder)])["Cranfield"]
    want = evaluate_retrieval(encode_with(trained_model), folder)
    assert got["ndcg_at_10"] == pytest.approx(want["ndcg@10"], abs=ROUNDED)
    assert got["ndcg_at_10"] > 0.2


def test_documented_code(run_documented):
    assert "ndcg_at_10" in run_documented("MTEB")
