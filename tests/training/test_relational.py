"""Relational distillation: packed batches, the cache of a teacher's embeddings, the losses, a run."""

import itertools
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("scipy", reason="the train extra is not installed")

from sentence_transformers import SentenceTransformer

from lam_transformers.checkpoints.init import lam_from_bert
from lam_transformers.io.loading import locate_model
from lam_transformers.scoring.pooling import embed_texts, packed_mean_pool
from lam_transformers.training import relational
from lam_transformers.training.cache import EmbeddingCache, Teacher, model_key, teacher_embeddings, text_key
from lam_transformers.training.data import (
    PackedBatches,
    TokenTable,
    dropped,
    evaluation_sentences,
    load_or_tokenize,
    nearest_groups,
    normalise,
    read_texts,
    tokenize_texts,
)
from lam_transformers.training.losses import margin_loss, similarity_loss, structure_loss
from lam_transformers.training.relational import RelationalConfig, RelationalDistiller

from ..conftest import GEOMETRY, POSITIONS
from ..helpers import assert_close_rms, hidden, perturb
from .conftest import read_log, sentence, write_records


@pytest.fixture(scope="module")
def texts():
    pick = random.Random(0)
    return [sentence(pick, pick.randint(3, 9)) + f" {i}" for i in range(160)]


@pytest.fixture(scope="module")
def table(texts, tokenizer):
    return tokenize_texts([("toy", text) for text in texts], tokenizer, 10, keep_texts=True)[0]


@pytest.fixture(scope="module")
def dev_file(tmp_path_factory, texts):
    pairs = enumerate(itertools.pairwise(texts[:8]))
    records = [{"sentence1": a, "sentence2": b, "score": i} for i, (a, b) in pairs]
    return write_records(tmp_path_factory.mktemp("dev") / "dev.jsonl", records)


@pytest.fixture(scope="module")
def wide_teacher(tokenizer, tmp_path_factory):
    """A folder with a BERT of another width than the students, as SentenceTransformer saves it."""
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel

    torch.manual_seed(2)
    bert = tmp_path_factory.mktemp("wide-bert")
    sizes = GEOMETRY | {"hidden_size": 96, "num_attention_heads": 3, "vocab_size": len(tokenizer)}
    config = BertConfig(max_position_embeddings=POSITIONS, initializer_range=0.1, **sizes)
    perturb(BertModel(config), 3, 0.05).save_pretrained(bert)
    tokenizer.save_pretrained(bert)
    folder = tmp_path_factory.mktemp("wide-teacher")
    SentenceTransformer(modules=[Transformer(str(bert)), Pooling(96), Normalize()], device="cpu").save(str(folder))
    return str(folder)


def test_a_table_keeps_the_texts_cut_where_their_ids_are_cut(tokenizer, tmp_path):
    given = ["The Dog  runs!", "a caf\u00e9 on the street ", "a man reads a book in the house of the old woman"]
    table, _ = tokenize_texts([("toy", text) for text in given], tokenizer, 8, keep_texts=True)
    table.save(tmp_path / "table.npz")
    table = TokenTable.load(tmp_path / "table.npz")
    assert table.text(0) == given[0]
    assert table.text(2) == "a man reads a book in"
    for i in range(3):
        ids = table.ids[table.starts[i] : table.starts[i + 1]].tolist()
        assert tokenizer(table.text(i))["input_ids"] == ids
    with pytest.raises(ValueError, match="keep_texts"):
        tokenize_texts([("toy", "x")], tokenizer, 8)[0].text(0)


def test_a_kept_table_with_texts_is_not_taken_for_one_without(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("the dog runs\nthe cat sleeps\nthe dog runs\nOLD cats")
    (tmp_path / "dev.jsonl").write_text('{"sentence1": "The cat sleeps.", "sentence2": "x", "score": 1}')
    source = [tmp_path / "a.txt"]
    options = {"hub_dataset": None, "exclude": [tmp_path / "dev.jsonl"]}
    arguments = {"tokenizer": tokenizer, "max_length": 8, **options}
    table = load_or_tokenize(tmp_path / "run", source, keep_texts=True, **arguments)
    assert [table.text(i) for i in range(2)] == ["the dog runs", "OLD cats"]
    record = json.loads((tmp_path / "run" / "data.json").read_text())
    assert record["dropped"] == {"duplicate": 1, "in evaluation": 1}
    assert record["excluded_sentences"] == 2
    assert load_or_tokenize(tmp_path / "run", source, keep_texts=True, **arguments).text(1) == "OLD cats"
    with pytest.raises(ValueError, match="texts_kept"):
        load_or_tokenize(tmp_path / "run", source, **arguments)


def test_sentences_of_corpora_and_queries_are_excluded_too(tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "title": "T", "text": "A Document."}')
    (tmp_path / "pairs.jsonl").write_text('{"sentence1": "One", "sentence2": "Two!", "score": 0}')
    sentences = evaluation_sentences([tmp_path / "corpus.jsonl", tmp_path / "pairs.jsonl"])
    assert sentences == {normalise(x) for x in ("T", "A Document.", "One", "Two!")}
    (tmp_path / "empty.jsonl").write_text('{"score": 1}')
    with pytest.raises(ValueError, match="no text"):
        evaluation_sentences([tmp_path / "empty.jsonl"])
    assert dropped({"a": 3, "a: duplicate": 2, "b: duplicate": 1}) == {"duplicate": 3}


def test_a_file_may_give_a_sample_of_its_texts(tmp_path):
    for name, count in (("a", 50), ("b", 5)):
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name} {i}" for i in range(count)))
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    got = [text for _, text in read_texts(files, limits={"a.txt": 8, "b.txt": 9})]
    chosen = [int(text[2:]) for text in got if text.startswith("a")]
    assert len(chosen) == 8
    assert chosen == sorted(set(chosen))
    assert max(chosen) > 20
    assert got[8:] == [f"b {i}" for i in range(5)]
    assert got == [text for _, text in read_texts(files, limits={"a.txt": 8})]
    with pytest.raises(ValueError, match="text_limits names c.txt, which is none of the files: a.txt, b.txt"):
        load_or_tokenize(tmp_path, files, None, [], None, 16, limits={"a.txt": 8, "c.txt": 1})


def test_every_epoch_of_packed_batches_holds_every_group_once(table):
    batches = PackedBatches(table, tokens_per_batch=100, seed=5, group=4)
    count = batches.batches_per_epoch
    assert count > 8
    sizes = []
    for epoch in range(2):
        rows = [batches.rows(epoch * count + i) for i in range(count)]
        assert sorted(np.concatenate(rows)) == list(range(160))
        assert all((np.diff(r.reshape(-1, 4)) == 1).all() and (r.reshape(-1, 4)[:, 0] % 4 == 0).all() for r in rows)
        sizes += [table.lengths[r].sum() for r in rows]
    assert max(sizes) < 100 + 2 * 40
    assert not np.array_equal(batches.rows(0), batches.rows(count))
    again = PackedBatches(table, tokens_per_batch=100, seed=5, group=4)
    assert np.array_equal(again.rows(count + 3), batches.rows(count + 3))
    part = PackedBatches(table, tokens_per_batch=100, seed=5, group=4, max_texts=40)
    used = {int(i) for k in range(3 * part.batches_per_epoch) for i in part.rows(k)}
    assert len(used) == 40


def test_groups_of_near_texts_are_near_and_hold_each_text_once():
    random = np.random.default_rng(0)
    centres = random.standard_normal((30, 16))
    rows = np.concatenate([centres + 0.05 * random.standard_normal((30, 16)) for _ in range(4)])  # row i: i % 30
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    groups = nearest_groups(rows, 4, seed=1)
    assert groups.shape == (30, 4)
    assert sorted(groups.ravel()) == list(range(120))
    assert (groups % 30 == groups[:, :1] % 30).all()
    assert np.array_equal(groups, nearest_groups(rows, 4, seed=1))
    # Where neighbours are taken the rest make groups too; what fits no group is left out.
    few = nearest_groups(rows[:50], 3, seed=1, reach=2)
    assert few.shape == (16, 3)
    assert len(set(few.ravel())) == 48


def test_a_packed_batch_gives_the_embeddings_of_its_texts(table, tiny_model, tokenizer):
    rows, ids, bounds = PackedBatches(table, tokens_per_batch=100)[0]
    bounds = torch.from_numpy(bounds)
    states = hidden(tiny_model, torch.from_numpy(ids).unsqueeze(0), cu_seq_lens_q=bounds)
    want = embed_texts(tiny_model, tokenizer, [table.text(i) for i in rows])
    assert_close_rms("packed", packed_mean_pool(states, bounds), torch.from_numpy(want), 1e-5)


def embed_by_hash(asked):
    def encode(block):
        asked.extend(block)
        return np.stack([np.random.default_rng(text_key(x)).standard_normal(6) for x in block])

    return encode


def test_the_cache_computes_each_text_once_and_survives_a_kill(tmp_path):
    asked = []
    seen = []
    cache = EmbeddingCache(tmp_path, 6)
    places = cache.fill(["a", "b", "a", "c"], embed_by_hash(asked), seen.append, block=2)
    assert asked == ["a", "b", "c"]
    assert sum(seen) == 4
    assert places[0] == places[2]
    want = embed_by_hash([])(["a", "b", "a", "c"])
    assert np.allclose(cache.rows(places), want, atol=2e-3)
    # A kill in the middle of a write: half a row without its key, then a row whose key did not make it.
    with (tmp_path / "embeddings.f16").open("ab") as file:
        file.write(b"\x01" * 7)
    again = EmbeddingCache(tmp_path, 6)
    assert len(again) == 3
    again.fill(["d", "b"], embed_by_hash(asked))
    assert asked == ["a", "b", "c", "d"]
    keys = np.array([text_key(x) for x in ("d", "a", "never")], dtype=np.uint64)
    places = EmbeddingCache(tmp_path, 6).places(keys)
    assert places[2] == -1
    assert np.allclose(again.rows(places[:2]), embed_by_hash([])(["d", "a"]), atol=2e-3)
    with pytest.raises(ValueError, match="6 dimensions, not 7"):
        EmbeddingCache(tmp_path, 7)


def test_a_teacher_that_gives_nan_is_refused_and_what_was_kept_stays(tmp_path):
    cache = EmbeddingCache(tmp_path, 2)
    with pytest.raises(ValueError, match="no finite embedding for 'bad'"):
        cache.fill(["good", "bad"], lambda block: [[np.nan if x == "bad" else 1.0] * 2 for x in block], block=1)
    assert len(EmbeddingCache(tmp_path, 2)) == 1


def test_caches_are_kept_apart_by_weights_prompt_and_precision(wide_teacher, tiny_bert, tmp_path):
    first, places = teacher_embeddings(Teacher(wide_teacher), ["the dog"], tmp_path, bf16=False)
    assert first.dimensions == 96
    want = SentenceTransformer(wide_teacher, device="cpu").encode(["the dog"], normalize_embeddings=True)
    assert np.allclose(first.rows(places), want, atol=1e-3)
    prompted, places = teacher_embeddings(Teacher(wide_teacher, prompt="a cat "), ["the dog"], tmp_path, bf16=False)
    want = SentenceTransformer(wide_teacher, device="cpu").encode(["a cat the dog"], normalize_embeddings=True)
    assert np.allclose(prompted.rows(places), want, atol=1e-3)
    teacher_embeddings(Teacher(wide_teacher), ["the dog"], tmp_path, bf16=True)
    teacher_embeddings(Teacher(str(tiny_bert)), ["the dog"], tmp_path, bf16=False)
    assert len(list(tmp_path.iterdir())) == 4
    model = SentenceTransformer(wide_teacher, device="cpu")
    before = model_key(model)
    with torch.no_grad():
        model[0].auto_model.encoder.layer[0].output.dense.weight.mul_(1.01)
    assert model_key(model) != before
    assert Teacher().prefix == "query: "


def test_a_teacher_that_does_not_load_says_why(tmp_path):
    with pytest.raises(ValueError, match=r"teacher .*nowhere does not load"):
        Teacher(str(tmp_path / "nowhere")).load()


def test_names_are_looked_up_among_the_models_of_this_machine(wide_teacher, tmp_path, monkeypatch):
    (tmp_path / "all-wide-v1").symlink_to(wide_teacher)
    monkeypatch.setenv("LAM_MODELS", str(tmp_path))
    assert locate_model("somebody/all-wide-v1") == str(tmp_path / "all-wide-v1")
    assert Teacher("somebody/all-wide-v1").load("cpu").get_embedding_dimension() == 96
    assert locate_model("somebody/else") == "somebody/else"


def similarities(seed, size=6):
    x = torch.nn.functional.normalize(torch.randn(size, 4, generator=torch.Generator().manual_seed(seed)), dim=-1)
    return x @ x.T


def test_losses_of_similarities_are_what_they_say():
    ours, theirs = similarities(0), similarities(1)
    kl = []
    gaps = []
    for i in range(6):
        others = [j for j in range(6) if j != i]
        p, q = (theirs[i, others].double() / 0.1).softmax(0), (ours[i, others].double() / 0.2).softmax(0)
        kl.append((p * (p / q).log()).sum().item())
        best = max(others, key=lambda j: theirs[i, j].item())
        for j in others:
            wanted = min(0.3, (theirs[i, best] - theirs[i, j]).item())
            gaps.append(max(0.0, wanted - (ours[i, best] - ours[i, j]).item()))
    assert structure_loss(ours, theirs, 0.2, 0.1).item() == pytest.approx(np.mean(kl), rel=1e-4)
    assert margin_loss(ours, theirs, 0.3).item() == pytest.approx(np.mean(gaps), rel=1e-4)
    off = ~np.eye(6, dtype=bool)
    assert similarity_loss(ours, theirs).item() == pytest.approx(((ours - theirs).numpy()[off] ** 2).mean(), rel=1e-4)
    for loss in (structure_loss(ours, ours, 0.1, 0.1), margin_loss(ours, ours, 2.0), similarity_loss(ours, ours)):
        assert abs(loss.item()) < 1e-6


def test_the_reduction_keeps_similarities_and_turns_toward_the_student():
    g = torch.Generator().manual_seed(0)
    y = torch.randn(50, 5, generator=g) @ torch.randn(5, 12, generator=g)  # five directions in twelve
    turn = torch.linalg.qr(torch.randn(5, 5, generator=g))[0]
    directions = torch.linalg.svd(y, full_matrices=False)[2][:5]
    x = y @ directions.T @ turn
    weight = relational._reduction(x, y)
    assert_close_rms("orthonormal rows", weight @ weight.T, torch.eye(5), 1e-5)
    assert_close_rms("the student's own space", y @ weight.T, x, 1e-4)
    assert_close_rms("least squares", x @ relational._fitted(x, y).T, y, 5e-3)


@pytest.fixture
def make_run(tiny_bert, tokenizer, table, dev_file, wide_teacher, tmp_path, fresh_accelerator):
    """A new run, or with the same folder the continuation of one, as a new process would make it."""

    def make(folder, **changes):
        fresh_accelerator()
        torch.manual_seed(0)
        settings = {
            "steps": 6, "warmup_steps": 2, "decay_steps": 2, "tokens_per_batch": 120, "bf16": False,
            "learning_rate": 1e-3, "teachers": [{"name": wide_teacher}], "teacher_bf16": False, "dimensions": [64, 16],
        } | changes  # fmt: skip
        run = RelationalDistiller(
            student=lam_from_bert(tiny_bert, output_gate_rank=8),
            tokenizer=tokenizer,
            config=RelationalConfig(**settings),
            folder=folder,
            dev_file=dev_file,
            table=table,
            cache_folder=tmp_path / "cache",
        )
        run.prepare()
        return run

    return make


@pytest.mark.parametrize("projection", ["linear", "reduce"])
def test_relational_losses_fall_toward_a_wider_teacher(make_run, tmp_path, projection):
    run = make_run(tmp_path / "run", steps=40, decay_steps=10, learning_rate=3e-3, projection=projection)
    losses = []
    run.run(evaluate_every=1000, on_step=lambda progress: losses.append(dict(progress.losses)))
    for name in ("loss", "structure", "similarity"):
        assert np.mean([x[name] for x in losses[-5:]]) < 0.8 * np.mean([x[name] for x in losses[:5]]), name
    # The maps start where least squares and Procrustes put them.
    assert losses[0]["embedding"] < 0.06


@pytest.fixture
def two_teachers(wide_teacher, tiny_bert):
    return [{"name": wide_teacher, "weight": 3.0}, {"name": str(tiny_bert), "weight": 1.0}]


def test_cosines_of_several_teachers_are_the_weighted_mean_of_theirs(make_run, tmp_path, two_teachers):
    teachers = [two_teachers, two_teachers[:1], two_teachers[1:]]
    runs = [make_run(tmp_path / str(i), teachers=names, projection="linear") for i, names in enumerate(teachers)]
    rows = runs[0].batches.rows(0)
    together, wide, narrow = (x @ x.T for x in (run._joined(rows) for run in runs))
    assert_close_rms("cosines", together, (3 * wide + narrow) / 4, 1e-6)


@pytest.mark.parametrize("projection", ["linear", "reduce"])
def test_several_teachers_teach_as_one(make_run, tmp_path, two_teachers, projection):
    settings = {"projection": projection, "steps": 40, "decay_steps": 10, "learning_rate": 3e-3}
    run = make_run(tmp_path / "run", teachers=two_teachers, **settings)
    losses = []
    run.run(evaluate_every=1000, on_step=lambda progress: losses.append(progress.losses["similarity"]))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


@pytest.mark.parametrize("projection", ["linear", "reduce"])
def test_a_resumed_relational_run_equals_an_uninterrupted_one(make_run, tmp_path, projection):
    whole = make_run(tmp_path / "whole", projection=projection)
    whole.run(evaluate_every=2)
    make_run(tmp_path / "parts", projection=projection).run(evaluate_every=2, stop_after=3)
    second = make_run(tmp_path / "parts", projection=projection)
    assert second.run(evaluate_every=2).step == 6
    for ours, theirs in ((second.student, whole.student), (second.helpers, whole.helpers)):
        assert all(torch.equal(x, theirs.state_dict()[name]) for name, x in ours.state_dict().items())
    assert dict(vars(second.progress), seconds=0) == dict(vars(whole.progress), seconds=0)
    with pytest.raises(ValueError, match=r"'margin': \(0\.2, 0\.5\)"):
        make_run(tmp_path / "parts", projection=projection, margin=0.5).run()


def test_groups_of_neighbours_are_those_of_the_first_teacher(make_run, tmp_path):
    run = make_run(tmp_path / "run", neighbours=True)
    _, cache, places = run.teachers[0]
    groups = run.batches.rows(0).reshape(-1, 4)
    near = torch.from_numpy(cache.rows(places[groups.ravel()])).view(-1, 4, cache.dimensions)
    apart = torch.from_numpy(cache.rows(places[np.arange(groups.size)])).view(-1, 4, cache.dimensions)
    within = [(x @ x.mT).mean() for x in (near, apart)]
    assert within[0] > within[1]
    again = make_run(tmp_path / "run", neighbours=True)
    assert np.array_equal(run.batches.rows(3), again.batches.rows(3))


def test_only_the_texts_of_the_run_are_embedded(make_run, tmp_path):
    make_run(tmp_path / "short", steps=2)
    (folder,) = (tmp_path / "cache").iterdir()
    few = len(EmbeddingCache(folder, 96))
    make_run(tmp_path / "long", steps=500)
    assert 0 < few < len(EmbeddingCache(folder, 96)) == 160


def test_projections_that_do_not_fit_are_refused(make_run, tmp_path, two_teachers):
    with pytest.raises(ValueError, match="teacher is 96 wide, the student 64"):
        make_run(tmp_path / "run", projection="none")
    with pytest.raises(ValueError, match="teachers together are 160 wide, the student 64"):
        make_run(tmp_path / "run", projection="none", teachers=two_teachers)
    with pytest.raises(ValueError, match="weight of the teacher wide must be above 0, got 0"):
        Teacher(name="wide", weight=0)
    with pytest.raises(ValueError, match="linear, reduce or none"):
        RelationalConfig(projection="pca")
    with pytest.raises(ValueError, match="at least one teacher"):
        RelationalConfig(teachers=[])


ONE_OF_TWO = """
import sys
from pathlib import Path
from transformers import AutoTokenizer
from lam_transformers import LAMModel
from lam_transformers.training.data import TokenTable
from lam_transformers.training.relational import RelationalConfig, RelationalDistiller

folder, teacher, dev = map(Path, sys.argv[1:])
config = RelationalConfig(
    steps=2, warmup_steps=1, decay_steps=1, tokens_per_batch=120, bf16=False, teachers=[{"name": str(teacher)}]
)
tokenizer = AutoTokenizer.from_pretrained(folder / "student")
table = TokenTable.load(folder / "table.npz")
for _ in range(2):  # the second continues the first
    student = LAMModel.from_pretrained(folder / "student")
    run = RelationalDistiller(
        student=student, tokenizer=tokenizer, config=config, folder=folder / "run", dev_file=dev, table=table,
        cache_folder=folder / "cache",
    )
    run.run(evaluate_every=1000, stop_after=1)
    run.accelerator.wait_for_everyone()
place = run.accelerator.process_index
weights = sum(p.detach().double().sum().item() for p in run.parameters)
(folder / f"{place}.txt").write_text(f"{weights!r} {len(run.batches[place][1]) + len(run.batches[2 + place][1])}")
"""


@pytest.mark.slow
def test_two_processes_of_torchrun_train_one_model(tiny_bert, tokenizer, table, dev_file, wide_teacher, tmp_path):
    torch.manual_seed(0)
    lam_from_bert(tiny_bert, output_gate_rank=8).save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    table.save(tmp_path / "table.npz")
    (tmp_path / "one_of_two.py").write_text(ONE_OF_TWO)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "one_of_two.py"]
        + [str(path) for path in (tmp_path, wide_teacher, dev_file)],
        cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = ((tmp_path / f"{place}.txt").read_text().split() for place in (0, 1))
    assert first[0] == second[0]
    updates = [record for record in read_log(tmp_path / "run") if "tokens" in record]
    assert [record["step"] for record in updates] == [1, 2]
    # Tokens are those of the main process times the number of processes.
    assert abs(updates[-1]["tokens"] - int(first[1]) - int(second[1])) <= 80
