"""Fine-tuning: pairs from files, the shipped module under sentence-transformers' trainer, retention, exact resume."""

import json
import random

import numpy as np
import pytest
import torch

pytest.importorskip("scipy", reason="the train extra is not installed")
pytest.importorskip("datasets", reason="the train extra is not installed")

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from torch.nn import functional as F

from lam_transformers import LAMEncoder, LAMModel
from lam_transformers.checkpoints.export import export_model
from lam_transformers.scoring.sts import evaluate_sts
from lam_transformers.training import finetune, trainer
from lam_transformers.training.data import normalise
from lam_transformers.training.finetune import (
    FinetuneConfig,
    Finetuner,
    RetentionLoss,
    ScoredPairsLoss,
    encoder_of,
    load_student,
)
from lam_transformers.training.losses import orthogonality_loss
from lam_transformers.training.pairs import PairSource, cut_texts, read_source

from ..helpers import assert_close_rms
from .conftest import read_log, scored_pairs, sentence, write_records


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of scored pairs, triplets, questions with answers, and texts."""
    pick = random.Random(0)
    folder = tmp_path_factory.mktemp("data")
    scored = list(scored_pairs(pick, 60))
    write_records(folder / "scored.jsonl", scored[:40])
    write_records(folder / "dev.jsonl", scored[40:])
    anchors = [sentence(pick) for _ in range(40)]
    triplets = [{"anchor": a, "positive": a[: len(a) // 2], "negative": sentence(pick)} for a in anchors]
    write_records(folder / "triplets.jsonl", triplets)
    questions = [{"question": sentence(pick), "answer": sentence(pick), "label": 1} for _ in range(40)]
    write_records(folder / "questions.jsonl", questions)
    write_records(folder / "texts.jsonl", [{"text": sentence(pick, pick.randint(3, 9))} for _ in range(90)])
    return folder


def test_records_of_every_layout_become_rows(tmp_path, tokenizer):
    def rows(records, **options):
        return read_source(PairSource(str(write_records(tmp_path / "x.jsonl", records)), **options), tokenizer, 20)

    got, counts = rows(
        [
            {"question": " q ", "answer": "a", "source": "s"},
            {"question": "q", "answer": " "},
            {"question": "q"},
            {"question": "Q!", "answer": "A"},
            "{broken",
            {"question": "r", "answer": 7},
        ]
    )
    assert got == [{"anchor": "q", "positive": "a"}]
    assert counts == {"kept": 1, "empty": 2, "missing fields": 1, "duplicate": 1}
    got, counts = rows([{"sentence1": "a", "sentence2": "b", "label": x} for x in (0, 1)])
    assert (got, counts["not a positive pair"]) == ([{"anchor": "a", "positive": "b"}], 1)
    scored = [{"sentence1": "a", "sentence2": x, "score": x} for x in ("3.5", "high", "nan", "5", "0")]
    got, counts = rows(scored)
    assert got == [{"sentence1": "a", "sentence2": str(x), "score": float(x) / 5} for x in ("3.5", "5", "0")]
    assert counts["score is no number"] == 2
    assert [row["score"] for row in rows(scored, highest_score=10)[0]] == [0.35, 0.5, 0.0]
    with pytest.raises(ValueError, match=r"highest score of .*x\.jsonl must be above 0, got 0"):
        rows(scored[-1:])
    assert rows([{"anchor": "a", "positive": "b", "negative": "c"}])[0] == [
        {"anchor": "a", "positive": "b", "negative": "c"}
    ]
    assert rows([{"title": "t", "abstract": ["one", "two"]}])[0] == [{"anchor": "t", "positive": "one two"}]
    several = [{"anchor": "o", "positive": "one"}, {"anchor": "o", "positive": "two"}]
    assert rows([{"original": "o", "simplifications": ["one", "two"]}])[0] == several
    nli = [{"premise": str(i), "hypothesis": "h", "label": x} for i, x in enumerate(("entailment", "neutral", "other"))]
    got, counts = rows(nli, labels={"entailment": 1.0, "neutral": 0.5})
    assert [row["score"] for row in got] == [1.0, 0.5]
    assert counts["label not asked for"] == 1
    with pytest.raises(ValueError, match=r"x\.jsonl gives no pairs.*'missing fields': 1.*'body'.*question and answer"):
        rows([{"body": "b"}])


def test_rows_that_share_a_sentence_with_an_evaluation_set_are_dropped_unless_kept(tmp_path, tokenizer):
    records = [
        {"sentence1": "The dog", "sentence2": x, "score": 1} for x in ("a cat", "A street!", "a house", "a house")
    ]
    path = str(write_records(tmp_path / "x.jsonl", records))
    exclude = frozenset([normalise("a street")])
    rows, counts = read_source(PairSource(path), tokenizer, 20, exclude)
    assert [row["sentence2"] for row in rows] == ["a cat", "a house"]
    assert (counts["in evaluation"], counts["duplicate"]) == (1, 1)
    rows, counts = read_source(PairSource(path, keep_overlap=True), tokenizer, 20, exclude)
    assert len(rows) == 4
    assert counts == {"overlap kept": 1, "kept": 4}


def test_rows_are_cut_sampled_and_copied_with_words_left_out(folder, tokenizer):
    path = str(folder / "scored.jsonl")
    rows, counts = read_source(PairSource(path, max_records=10, word_dropout=0.5), tokenizer, 5, seed=3)
    assert (len(rows), counts["kept"], counts["over max_records"]) == (20, 10, 30)
    assert all(len(tokenizer(row["sentence1"])["input_ids"]) <= 5 for row in rows)
    assert rows == read_source(PairSource(path, max_records=10, word_dropout=0.5), tokenizer, 5, seed=3)[0]
    for row, copy in zip(rows[:10], rows[10:], strict=True):
        assert copy["sentence2"] == row["sentence2"]
        assert set(copy["sentence1"].split()) <= set(row["sentence1"].split())
    assert any(len(copy["sentence1"]) < len(row["sentence1"]) for row, copy in zip(rows[:10], rows[10:], strict=True))
    assert cut_texts(["the dog", "the old dog runs"], tokenizer, 4) == ["the dog", "the old"]


def test_gradients_flow_through_packed_rows_of_the_shipped_module(make_model, tokenizer):
    encoder = encoder_of(make_model(), tokenizer).train()
    texts = ["the dog runs", "a man", "the old woman sings in the street"]
    features = encoder.preprocess(texts)
    assert features["attention_mask"].sum(1).tolist() == [5, 4, 9]
    embeddings = encoder(features)["sentence_embedding"]
    (embeddings * torch.arange(64)).sum().backward()
    packed = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    encoder.zero_grad()
    for text in texts:  # a row of one text each
        (encoder(encoder.preprocess([text]))["sentence_embedding"] * torch.arange(64)).sum().backward()
    assert len(packed) == len([p for p in encoder.parameters() if p.requires_grad])
    for name, p in encoder.named_parameters():
        assert_close_rms(name, packed[name], p.grad, 1e-4)


def test_cached_negatives_give_the_gradients_of_uncached_ones(make_model, tokenizer):
    encoder = encoder_of(make_model(), tokenizer).train()
    pick = random.Random(0)
    columns = [[sentence(pick, pick.randint(2, 9)) for _ in range(7)] for _ in range(2)]

    def gradients(loss):
        encoder.zero_grad()
        value = losses.MatryoshkaLoss(encoder, loss, [64, 16])([encoder.preprocess(c) for c in columns], None)
        value.backward()
        return value.item(), {name: p.grad.clone() for name, p in encoder.named_parameters()}

    plain = gradients(losses.MultipleNegativesRankingLoss(encoder))
    cached = gradients(losses.CachedMultipleNegativesRankingLoss(encoder, mini_batch_size=3))
    assert cached[0] == pytest.approx(plain[0], rel=1e-5)
    for name in plain[1]:
        assert_close_rms(name, cached[1][name], plain[1][name], 1e-4)


def test_the_loss_of_scored_pairs_is_cosent_and_the_squared_error(make_model, tokenizer):
    encoder = encoder_of(make_model(), tokenizer).train()
    scores = torch.tensor([0.2, 1.0, 0.2, 0.7])
    columns = [["the dog", "a cat sleeps", "the house", "a man"], ["the cat", "a cat", "the old house", "the street"]]

    def loss(cosine_weight):
        return ScoredPairsLoss(encoder, 20.0, cosine_weight)([encoder.preprocess(x) for x in columns], scores).item()

    first, second = (encoder(encoder.preprocess(x))["sentence_embedding"].double() for x in columns)
    cosines = F.cosine_similarity(first, second)
    wrong = [(20 * (cosines[i] - cosines[j])).exp() for i in range(4) for j in range(4) if scores[i] < scores[j]]
    assert loss(0.0) == pytest.approx(torch.log1p(sum(wrong)).item(), rel=1e-4)
    assert loss(7.0) - loss(0.0) == pytest.approx(7 * (cosines - scores).square().mean().item(), rel=1e-3)


def test_retention_is_distance_and_similarity_structure(make_model, tokenizer):
    encoder = encoder_of(make_model(), tokenizer).train()
    features = encoder.preprocess(["the dog", "a cat sleeps", "the house"])
    ours = encoder(encoder.preprocess(["the dog", "a cat sleeps", "the house"]))["sentence_embedding"].detach()
    assert RetentionLoss(encoder, 3.0, 5.0)([features], ours).item() == pytest.approx(0, abs=1e-5)
    before = F.normalize(ours + 0.3 * torch.randn(ours.shape, generator=torch.Generator()), dim=-1)
    off = ~torch.eye(3, dtype=bool)
    want = 3 * (1 - (ours * before).sum(-1)).mean() + 5 * ((ours @ ours.T - before @ before.T)[off] ** 2).mean()
    features = encoder.preprocess(["the dog", "a cat sleeps", "the house"])
    assert RetentionLoss(encoder, 3.0, 5.0)([features], before).item() == pytest.approx(want.item(), rel=1e-4)


def finetuner(start, data, settings, **options):
    """A run from a model folder, prepared."""
    student, tokenizer = load_student(start)
    options |= {"config": FinetuneConfig(**settings), "dev_file": data / "dev.jsonl", "data": data}
    run = Finetuner(student=student, tokenizer=tokenizer, **options)
    run.prepare()
    return run


@pytest.fixture
def make_run(folder, tiny_folder, tmp_path, fresh_accelerator):
    """A new run, or with the same folder the continuation of one, as a new process would make it."""

    def make(name, exclude=(), **changes):
        fresh_accelerator()
        torch.manual_seed(0)
        settings = {
            "steps": 8, "warmup_steps": 2, "decay_steps": 2, "learning_rate": 1e-3, "batch_size": 8, "bf16": False,
            "dimensions": [64, 16], "mini_batch_size": 4, "retention_texts": 40,
            "retention_text": ["texts.jsonl"],
            "sources": [{"path": f"{name}.jsonl"} for name in ("scored", "triplets", "questions")],
        } | changes  # fmt: skip
        return finetuner(
            tiny_folder, folder, settings, folder=tmp_path / name, exclude=exclude, cache_folder=tmp_path / "cache"
        )

    return make


def weights(run) -> dict:
    return {name: x.clone() for name, x in run.encoder.state_dict().items()}


@pytest.mark.parametrize("bf16", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["float32", "bfloat16"])
def test_a_resumed_run_equals_an_uninterrupted_one(make_run, bf16):
    whole = make_run("whole", bf16=bf16)
    whole.run(evaluate_every=2, checkpoint_every=100)
    first = make_run("parts", bf16=bf16)
    assert first.run(evaluate_every=2, checkpoint_every=100, stop_after=3).step == 3
    second = make_run("parts", bf16=bf16)
    assert second.progress.step == 3
    assert second.run(evaluate_every=2, checkpoint_every=100).step == 8
    want = weights(whole)
    assert not [name for name, x in weights(second).items() if not torch.equal(x, want[name])]
    ours, theirs = (run.progress for run in (second, whole))
    assert (ours.tokens, ours.best_score, ours.best_step) == (theirs.tokens, theirs.best_score, theirs.best_step)
    with pytest.raises(ValueError, match=r"another configuration.*'scale': \(20\.0, 30\.0\)"):
        make_run("parts", bf16=bf16, scale=30.0)
    assert make_run("parts", bf16=bf16, steps=11).run(checkpoint_every=9, stop_after=2).step == 10
    assert [p.name for p in second.folder.glob("checkpoint-*")].count("checkpoint-9") == 1


def test_only_the_memories_move_unless_asked_and_the_scores_are_learnt(make_run, tiny_model, folder):
    run = make_run("run", steps=40, decay_steps=20, learning_rate=3e-3, sources=make_run("x").config.sources[:1])
    before = weights(run)
    start = evaluate_sts(run._encode, folder / "scored.jsonl")
    run.run(evaluate_every=5)
    end = evaluate_sts(run._encode, folder / "scored.jsonl")
    assert end["pearson"] > start["pearson"] + 0.005  # the start knows shared words already: 0.92
    changed = {name for name, x in weights(run).items() if not torch.equal(x, before[name])}
    assert changed == {name for name in before if ".memory." in name}
    log = read_log(run.folder)
    scores = [record["dev_pearson"] for record in log if "dev_pearson" in record]
    assert len(scores) == 8
    assert max(scores) == run.progress.best_score
    assert all("dev_spearman@16" in record for record in log if "dev_pearson" in record)
    more = make_run("more", feed_forward_learning_rate=1e-4)
    more.run(evaluate_every=100)
    still = {name for name, x in weights(more).items() if torch.equal(x, before[name])}
    assert still == {name for name in before if ".embeddings." in name}


def test_the_orthogonal_regularisation_is_part_of_the_loss(make_run):
    runs = [make_run(str(weight), orthogonality_weight=weight, clip_norm=1e9) for weight in (0.0, 1e4)]
    for run in runs:
        run.run(evaluate_every=100)
    plain, regular = (orthogonality_loss(run.encoder[0].model).item() for run in runs)
    assert regular < 0.98 * plain


def test_the_best_folder_is_a_model_folder(make_run, tmp_path):
    run = make_run("run")
    run.run(evaluate_every=4)
    best = LAMEncoder(run.folder / "best").encode(["the dog runs"])
    assert np.isfinite(best).all()
    export_model(run.folder / "best", tmp_path / "exported", torch.float32)
    assert np.allclose(LAMEncoder(tmp_path / "exported").encode(["the dog runs"]), best, atol=1e-6)
    record = json.loads((run.folder / "data.json").read_text())
    assert {name: x["counts"]["kept"] for name, x in record["sources"].items()} == {
        "scored": 40, "triplets": 40, "questions": 40,
    }  # fmt: skip


def test_hard_negatives_are_mined_once_with_the_model_before_the_stage(make_run, folder, monkeypatch):
    sources = [{"path": str(folder / "questions.jsonl"), "hard_negatives": 2}]
    run = make_run("run", sources=sources, retention_texts=0)
    mined = run.datasets["questions"]
    assert mined.column_names == ["anchor", "positive", "negative_1", "negative_2"]
    positives = dict(zip(mined["anchor"], mined["positive"], strict=True))
    assert all(row["negative_1"] != positives[row["anchor"]] for row in mined)
    assert run.run(evaluate_every=100, stop_after=2).step == 2
    monkeypatch.setattr(finetune, "mine_hard_negatives", None)
    again = make_run("run", sources=sources, retention_texts=0)
    assert again.datasets["questions"].to_list() == mined.to_list()
    assert again.run(evaluate_every=100).step == 8


@pytest.mark.parametrize("mini_batch_size", [4, 8], ids=["cached", "plain"])
def test_a_guide_keeps_false_negatives_out_of_the_contrast(make_run, tiny_bert, mini_batch_size):
    settings = {"guide": str(tiny_bert), "guide_margin": 0.02, "mini_batch_size": mini_batch_size, "dimensions": []}
    run = make_run("run", sources=[{"path": "questions.jsonl"}], retention_texts=0, **settings)
    data = run.datasets["questions"]
    columns = [list(data[name][:8]) for name in ("anchor", "positive")]
    with torch.no_grad():
        got = run._loss("questions", data)([run.encoder.preprocess(x) for x in columns], None).item()
        ours, guides = (
            [F.normalize(torch.tensor(m.encode(x)).double()) for x in columns] for m in (run.encoder, run.guide)
        )

    def similarities(vectors):
        first, second = vectors
        return torch.cat([first @ second.T, first @ first.T, second @ second.T], 1)

    own = torch.cat([torch.zeros(8, 8), torch.eye(8), torch.eye(8)], 1).bool()  # a text is no negative of itself
    pair = torch.cat([torch.eye(8), torch.zeros(8, 16)], 1).bool()
    near = similarities(guides) > (guides[0] * guides[1]).sum(1, keepdim=True) - 0.02
    left_out = own | (near & ~pair)
    assert 8 < (left_out & ~own).sum() < 8 * 21
    logits = (20 * similarities(ours)).masked_fill(left_out, -torch.inf)
    assert got == pytest.approx(F.cross_entropy(logits, torch.arange(8)).item(), rel=1e-3)

    before = {name: x.clone() for name, x in run.guide.state_dict().items()}
    assert run.run(evaluate_every=100).step == 8
    assert all(torch.equal(x, before[name]) for name, x in run.guide.state_dict().items())
    with pytest.raises(ValueError, match=r"another configuration.*'guide_margin': \(0\.02, 0\.0\)"):
        make_run("run", **settings | {"guide_margin": 0.0})


def test_a_guide_is_refused_where_it_cannot_load_or_has_nothing_to_do(make_run, tiny_bert, tmp_path):
    with pytest.raises(ValueError, match="guide .* has nothing to do: all sources are scored pairs"):
        make_run("scored", guide=str(tiny_bert), sources=[{"path": "scored.jsonl"}])
    with pytest.raises(ValueError, match="nowhere does not load with sentence-transformers"):
        make_run("nowhere", guide=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(("slowdown", "bf16", "warns"), [(40.0, True, True), (40.0, False, False), (1.1, True, False)])
def test_bfloat16_on_a_processor_that_imitates_it_is_warned_of(make_run, monkeypatch, caplog, slowdown, bf16, warns):
    monkeypatch.setattr(trainer, "bf16_slowdown", lambda: slowdown)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    make_run("run", bf16=bf16, retention_texts=0)
    told = "bfloat16 takes 40 times as long as in float32 on this processor. Set bf16: false to train"
    assert (told in caplog.text) == warns


def test_the_slowdown_of_bfloat16_is_measured():
    assert 0.01 < trainer.bf16_slowdown() < 1000


def test_retention_texts_are_those_outside_the_evaluation_and_embedded_once(make_run, folder, tmp_path, monkeypatch):
    texts = [json.loads(line)["text"] for line in (folder / "texts.jsonl").read_text().splitlines()]
    excluded = write_records(tmp_path / "excluded.jsonl", [{"text": text} for text in texts[::2]])
    settings = {"retention_texts": 90, "sources": [{"path": "triplets.jsonl"}]}
    asked = []
    encode = SentenceTransformer.encode

    def counted(self, block, *args, **kwargs):
        asked.extend(block)
        return encode(self, block, *args, **kwargs)

    monkeypatch.setattr(SentenceTransformer, "encode", counted)
    run = make_run("run", exclude=[excluded], **settings)
    kept = run.datasets["retention"]
    assert len(kept) == 45
    assert set(kept["text"]) == set(texts[1::2])
    assert sorted(asked) == sorted(kept["text"])  # each text once
    assert np.allclose(kept["label"], encode(run.encoder, list(kept["text"])), atol=2e-3)
    asked.clear()
    again = make_run("another folder", exclude=[excluded], **settings)
    assert again.datasets["retention"].to_list() == kept.to_list()
    assert asked == []  # the cache has them all


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(make_run):
    make_run("run").run(stop_after=2)
    run = make_run("run")
    broken = finetune.check_finite

    def poisoned(value, step, what, folder):
        broken(float("nan") if step == 3 else value, step, what, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "check_finite", poisoned)
        with pytest.raises(FloatingPointError, match=r"nan at step 3 \(batch of \w+\)"):
            run.run()
    assert {path.name for path in run.folder.glob("checkpoint-*")} == {"checkpoint-2"}
    assert make_run("run").run().step == 8
    assert LAMModel.from_pretrained(run.folder / "best")


def test_a_full_disk_keeps_the_last_checkpoint(make_run, monkeypatch):
    make_run("run").run(stop_after=2)

    def full(self, folder):
        raise RuntimeError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(finetune._Trainer, "_save_optimizer_and_scheduler", full)
        with pytest.raises(OSError, match=r"checkpoint-4 could not be written, the one before is kept.*No space"):
            make_run("run").run(checkpoint_every=4)
    assert make_run("run").progress.step == 2


def test_another_model_is_tuned_whole_or_not_at_all(make_run, tiny_bert, folder, tmp_path):
    def tuned(**changes):
        settings = {"steps": 2, "sources": [{"path": "scored.jsonl"}], "bf16": False} | changes
        return finetuner(tiny_bert, folder, settings, folder=tmp_path / "bert")

    with pytest.raises(ValueError, match="is no LAM: set train_everything"):
        tuned()
    with pytest.raises(ValueError, match=r"no parameter's name begins with 'encoder\.layer\.9\.'"):
        tuned(train_everything=True, frozen=["encoder.layer.9."]).run()


def test_a_model_that_pads_gets_rows_of_like_length_once_an_epoch(make_run, tiny_bert, folder, tmp_path):
    texts = [" ".join(["dog"] * (i % 37 + 1)) for i in range(500)]
    scored = Dataset.from_list([{"sentence1": text, "sentence2": "a cat", "score": 0.5} for text in texts])
    batches = finetune.padding_batches(scored, batch_size=16, drop_last=False, seed=3)
    first = list(batches)
    assert sorted(i for batch in first for i in batch) == list(range(500)) and len(first) == len(batches)
    longest = [max(batches.lengths[i] for i in batch) for batch in first]
    assert sum(size * len(batch) for size, batch in zip(longest, first, strict=True)) < 1.2 * sum(batches.lengths)
    again = finetune.padding_batches(scored, batch_size=16, drop_last=False, seed=3)
    assert list(again) == first
    again.set_epoch(1)
    assert list(again) != first
    pairs = Dataset.from_dict({"anchor": texts, "positive": texts})
    assert isinstance(
        finetune.padding_batches(pairs, batch_size=16, drop_last=False), finetune.NoDuplicatesBatchSampler
    )
    settings = {"steps": 2, "train_everything": True, "sources": [{"path": "scored.jsonl"}], "bf16": False}
    run = finetuner(tiny_bert, folder, settings, folder=tmp_path / "bert")
    assert run.batch_sampler is finetune.padding_batches and run.run().step == 2


def test_sources_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="at least one of `sources`"):
        FinetuneConfig()
    with pytest.raises(ValueError, match="names of their own: x"):
        FinetuneConfig(sources=[{"path": "a/x.jsonl"}, {"path": "b/x.jsonl"}])
    with pytest.raises(ValueError, match="needs retention_text"):
        FinetuneConfig(sources=[{"path": "x"}], retention_texts=5)
