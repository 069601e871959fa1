"""Training: readers, batches of equal length, losses, and a distillation run that survives being stopped."""

import gzip
import json
import logging
import lzma
import os
import random
import shutil

import numpy as np
import pytest
import torch
from transformers import BertModel

pytest.importorskip("scipy", reason="the train extra is not installed")

from lam_transformers import LAMModel
from lam_transformers.checkpoints.init import lam_from_bert
from lam_transformers.io import files
from lam_transformers.io.files import find_files, read_records
from lam_transformers.training import data, loop
from lam_transformers.training.data import (
    LengthBatches,
    TokenTable,
    evaluation_sentences,
    normalise,
    read_file_list,
    read_texts,
    tokenize_texts,
)
from lam_transformers.training.distill import DistillConfig, Distiller
from lam_transformers.training.loop import learning_rate_factor
from lam_transformers.training.losses import distillation_losses, orthogonality_loss

from ..helpers import hidden, random_ids
from .conftest import read_log, scored_pairs, sentence, write_records


def test_broken_lines_are_skipped_and_reported(tmp_path, caplog):
    lines = ['{"text": "one"}', "{broken", "", '["a list"]', "7", '{"text": "two"}']
    path = write_records(tmp_path / "texts.jsonl", lines)
    with caplog.at_level(logging.WARNING):
        assert [record["text"] for record in read_records(path)] == ["one", "two"]
    assert "texts.jsonl" in caplog.text
    assert "3 lines" in caplog.text


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(OSError, match="no regular file but a pipe"):
        list(read_records(tmp_path / "a.jsonl"))
    write_records(tmp_path / "b.txt", ["text"])
    assert find_files([tmp_path]) == [tmp_path / "b.txt"]


def test_whole_files_are_read_without_a_warning(tmp_path, caplog):
    line = json.dumps({"text": "caf\u00e9"}, ensure_ascii=False) + "\n"
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    (tmp_path / "b.jsonl.xz").write_bytes(lzma.compress(line.encode()))
    for path in find_files([tmp_path]):
        assert list(read_records(path)) == [{"text": "caf\u00e9"}]
    assert not caplog.records


def test_find_files_takes_files_and_folders_once_and_sorted(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    names = ["b.jsonl", "deep/a.jsonl.gz", "deep/er/c.txt", "deep/d.jsonl.xz"]
    for name in [*names, "deep/ignored.csv", "readme.md"]:
        (tmp_path / name).touch()
    assert find_files([tmp_path, tmp_path / "deep", tmp_path / "b.jsonl"]) == sorted(tmp_path / name for name in names)


def test_find_files_refuses_a_source_without_texts(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_files([tmp_path / "nowhere"])
    (tmp_path / "only.csv").touch()
    with pytest.raises(FileNotFoundError, match=r"\.jsonl"):
        find_files([tmp_path])


def test_every_text_field_of_every_record_is_read(tmp_path):
    records = [{"premise": " p ", "hypothesis": "h", "label": "no text"}, {"text": "  "}, {"text": 3}, {"anchor": "a"}]
    pairs = write_records(tmp_path / "pairs.jsonl", records)
    plain = write_records(tmp_path / "plain.txt", ["line one", "", "line two"])
    got = list(read_texts([pairs, plain]))
    want = [("pairs.jsonl", x) for x in ("p", "h", "a")] + [("plain.txt", x) for x in ("line one", "line two")]
    assert got == want


@pytest.mark.parametrize("name", ["plain.txt", "records.jsonl"])
def test_text_files_are_closed_at_the_end_and_when_nobody_asks_for_more(tmp_path, monkeypatch, name):
    record = "one" if name.endswith(".txt") else '{"text": "one"}'
    path = write_records(tmp_path / name, [record, record])
    opened = []

    def remember(path):
        opened.append(path.open(encoding="utf-8"))
        return opened[-1]

    monkeypatch.setattr(data, "open_text", remember)
    monkeypatch.setattr(files, "open_text", remember)
    assert len(list(read_texts([path]))) == 2
    texts = read_texts([path])
    next(texts)
    assert [file.closed for file in opened] == [True, False]
    texts.close()
    assert [file.closed for file in opened] == [True, True]


def test_a_list_of_files_has_one_name_a_line(tmp_path):
    path = write_records(tmp_path / "list.txt", ["# evaluation sets", "", " sts/dev.jsonl ", "b.jsonl"])
    assert read_file_list(path) == ["sts/dev.jsonl", "b.jsonl"]


def test_a_file_without_any_text_field_is_refused(tmp_path):
    path = write_records(tmp_path / "numbers.jsonl", ['{"score": 1}'])
    with pytest.raises(ValueError, match=r"numbers\.jsonl has no text.*premise"):
        list(read_texts([path]))


def test_texts_are_tokenized_once_and_evaluation_sentences_never(tokenizer, tmp_path):
    dev = write_records(tmp_path / "dev.jsonl", ['{"sentence1": "The cat SLEEPS.", "sentence2": "a", "score": 1}'])
    texts = [
        ("one", "the dog runs"),
        ("one", "The dog runs!"),
        ("two", "the dog   runs"),
        ("two", "the cat sleeps"),
        ("two", "a man reads a book in the house"),
    ]
    seen = []
    table, counts = tokenize_texts(texts, tokenizer, 6, exclude=evaluation_sentences([dev]), progress=seen.append)
    assert counts == {"one": 1, "one: duplicate": 1, "two": 1, "two: duplicate": 1, "two: in evaluation": 1}
    assert sum(seen) == 5
    assert len(table) == 2
    assert table.lengths.tolist() == [5, 6]
    want = [tokenizer(t, truncation=True, max_length=6)["input_ids"] for t in ("the dog runs", texts[-1][1])]
    assert table.ids.tolist() == want[0] + want[1]
    assert normalise("It's 5 o'CLOCK") == "its5oclock"


def test_more_texts_than_one_block_keep_their_order(tokenizer):
    texts = [("numbers", f"{i}") for i in range(5000)]
    table, counts = tokenize_texts(texts, tokenizer, 16)
    assert counts == {"numbers": 5000}
    assert len(table) == 5000
    for i in (0, 4095, 4096, 4999):
        assert table.ids[table.starts[i] : table.starts[i + 1]].tolist() == tokenizer(str(i))["input_ids"]


def test_no_texts_make_an_empty_table(tokenizer):
    table, counts = tokenize_texts([], tokenizer, 16)
    assert len(table) == 0
    assert not counts


def test_a_table_is_saved_and_loaded(tmp_path):
    table = TokenTable(np.arange(9, dtype=np.int32), np.array([0, 4, 4, 9]))
    table.save(tmp_path / "new folder" / "table.npz")
    loaded = TokenTable.load(tmp_path / "new folder" / "table.npz")
    assert loaded.ids.tolist() == table.ids.tolist()
    assert loaded.starts.tolist() == table.starts.tolist()
    assert len(list((tmp_path / "new folder").iterdir())) == 1


@pytest.fixture(scope="module")
def numbered_table():
    """Every token of text i is i, so that a batch shows which texts it holds."""
    lengths = np.random.default_rng(0).integers(1, 9, 500)
    ids = np.repeat(np.arange(500, dtype=np.int32), lengths)
    return TokenTable(ids, np.concatenate([[0], np.cumsum(lengths)]))


def test_a_batch_holds_whole_texts_of_one_length(numbered_table):
    batches = LengthBatches(numbered_table, tokens_per_batch=60)
    for index in range(batches.batches_per_epoch):
        batch = batches[index]
        assert batch.dtype == np.int64
        assert (batch == batch[:, :1]).all()
        assert (numbered_table.lengths[batch[:, 0]] == batch.shape[1]).all()
        assert len(batch) == max(60 // batch.shape[1], 8)


def test_an_epoch_holds_every_text_but_the_left_over_ones_once(numbered_table):
    batches = LengthBatches(numbered_table, tokens_per_batch=60)
    count = batches.batches_per_epoch
    epochs = [[int(i) for k in range(count) for i in batches[e * count + k][:, 0]] for e in range(4)]
    left_over = [set(range(500)) - set(texts) for texts in epochs]
    for texts, missing in zip(epochs, left_over, strict=True):
        assert len(set(texts)) == len(texts)
        lengths, counts = np.unique(numbered_table.lengths[list(missing)], return_counts=True)
        assert all(n < max(60 // length, 8) for length, n in zip(lengths, counts, strict=True))
    assert epochs[0] != epochs[1]
    assert left_over[0] != left_over[1]


def test_batches_are_a_function_of_seed_and_index(numbered_table):
    batches = LengthBatches(numbered_table, 60, seed=3)
    want = [batches[i] for i in range(3 * batches.batches_per_epoch)]
    again = LengthBatches(numbered_table, 60, seed=3)
    for i in (len(want) - 1, 5, batches.batches_per_epoch, 0, 5):
        assert np.array_equal(again[i], want[i])
    other = LengthBatches(numbered_table, 60, seed=4)
    assert any(not np.array_equal(other[i], want[i]) for i in range(5))


def test_too_few_texts_are_refused():
    table = TokenTable(np.zeros(7 * 3, np.int32), np.arange(0, 22, 3))
    with pytest.raises(ValueError, match=r"Too few texts.* 8 "):
        LengthBatches(table, 100)
    assert LengthBatches(table, 100, min_texts=7)[0].shape == (7, 3)


def random_states(seed, layers=3, batch=5, time=4, width=6):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, time, width, generator=g) for _ in range(layers))


def test_losses_of_identical_states_are_zero():
    states = random_states(0)
    for name, loss in distillation_losses(states, states).items():
        assert loss.dtype == torch.float32
        assert abs(loss.item()) < 1e-6, name


def test_losses_are_what_they_say():
    student, teacher = random_states(0), random_states(1)
    got = {name: loss.item() for name, loss in distillation_losses(student, teacher).items()}
    x, y = ([s.double().numpy() for s in states] for states in (student, teacher))
    hidden_loss = np.mean([((a - b) ** 2).mean() / b.var(ddof=1) for a, b in zip(x[1:], y[1:], strict=True)])
    ours, theirs = (a[-1].mean(1) / np.linalg.norm(a[-1].mean(1), axis=-1, keepdims=True) for a in (x, y))
    difference = (ours @ ours.T - theirs @ theirs.T)[~np.eye(5, dtype=bool)]
    assert got["hidden"] == pytest.approx(hidden_loss, rel=1e-5)
    assert got["embedding"] == pytest.approx(1 - (ours * theirs).sum(-1).mean(), rel=1e-5)
    assert got["similarity"] == pytest.approx((difference**2).mean(), rel=1e-5)
    assert got.keys() == {"hidden", "embedding", "similarity"}


def test_losses_of_a_single_text_are_finite():
    losses = distillation_losses(random_states(0, batch=1), random_states(1, batch=1))
    assert all(loss.isfinite() for loss in losses.values())


def test_orthogonality_is_zero_for_orthogonal_rows_of_any_length_and_positive_otherwise(make_model):
    model = make_model()
    assert orthogonality_loss(model).item() > 1e-3
    with torch.no_grad():
        for layer in model.layers:
            rows = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0]
            layer.memory.in_proj.weight[:64] = 3 * rows
            layer.memory.in_proj.weight[64:128] = rows.flip(0)
    assert orthogonality_loss(model).item() < 1e-10


@pytest.fixture(scope="module")
def table(tokenizer):
    pick = random.Random(0)
    texts = [("toy", sentence(pick, pick.randint(3, 8))) for _ in range(400)]
    return tokenize_texts(texts, tokenizer, 32)[0]


@pytest.fixture(scope="module")
def dev_file(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("dev") / "dev.jsonl", scored_pairs(random.Random(1), 12, words=5))


@pytest.fixture
def make_distiller(tiny_bert, tokenizer, table, dev_file, fresh_accelerator):
    """A new run, or with the same folder the continuation of one, as a new process would make it."""

    def make(folder, teacher=None, **changes):
        fresh_accelerator()  # accelerate keeps its precision for a whole process
        torch.manual_seed(0)
        settings = {"steps": 6, "warmup_steps": 2, "decay_steps": 2, "tokens_per_batch": 80, "bf16": False} | changes
        run = Distiller(
            student=lam_from_bert(tiny_bert, output_gate_rank=8),
            tokenizer=tokenizer,
            config=DistillConfig(**settings),
            folder=folder,
            dev_file=dev_file,
            teacher=BertModel.from_pretrained(tiny_bert) if teacher is None else teacher,
            table=table,
        )
        run.prepare()
        return run

    return make


def everything(distiller) -> dict:
    """Weights and optimizer state by name."""
    model = distiller.accelerator.unwrap_model(distiller.student)
    tensors = dict(model.state_dict())
    for i, slots in distiller.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer {i} {name}": value for name, value in slots.items()}
    return tensors


def assert_same_run(got, want):
    ours, theirs = everything(got), everything(want)
    assert ours.keys() == theirs.keys()
    different = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    assert not different
    ours, theirs = (dict(vars(run.progress), seconds=0) for run in (got, want))
    assert ours == theirs


def files_of(folder) -> dict:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_loss_falls_and_the_frozen_parameters_stay(make_distiller, tmp_path):
    run = make_distiller(tmp_path, steps=30, warmup_steps=5, decay_steps=10, learning_rate=3e-3)
    before = {name: p.detach().clone() for name, p in run.student.named_parameters()}
    losses = []
    run.run(evaluate_every=1000, checkpoint_every=1000, on_step=lambda progress: losses.append(progress.losses["loss"]))
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    changed = {name for name, p in run.student.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if ".memory." in name}
    assert run.progress.tokens == sum(run.batches[i].size for i in range(30))


def test_train_everything_moves_every_parameter_that_text_reaches(make_distiller, tmp_path):
    run = make_distiller(tmp_path, train_everything=True)
    before = {name: p.detach().clone() for name, p in run.student.named_parameters()}
    run.run(evaluate_every=1000)
    assert all(not torch.equal(p, before[name]) for name, p in run.student.named_parameters())


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(make_distiller, tmp_path, bf16):
    whole = make_distiller(tmp_path / "whole", bf16=bf16)
    whole.run(evaluate_every=2, checkpoint_every=100)
    first = make_distiller(tmp_path / "parts", bf16=bf16)
    assert first.run(evaluate_every=2, checkpoint_every=100, stop_after=3).step == 3
    second = make_distiller(tmp_path / "parts", bf16=bf16)
    assert second.run(evaluate_every=2, checkpoint_every=100).step == 6
    assert_same_run(second, whole)
    finished = make_distiller(tmp_path / "parts", bf16=bf16)
    finished.run()
    assert_same_run(finished, whole)


def test_a_run_killed_while_it_wrote_a_checkpoint_resumes(make_distiller, tmp_path):
    whole = make_distiller(tmp_path / "whole")
    whole.run()
    make_distiller(tmp_path / "run").run(stop_after=3)
    for name, half_written in (("writing", False), ("swapping", True)):
        folder = tmp_path / name
        shutil.copytree(tmp_path / "run", folder)
        (folder / "checkpoint.tmp").mkdir()
        (folder / "checkpoint.tmp" / "state.pt").write_bytes(b"half of it")
        if half_written:
            (folder / "checkpoint").rename(folder / "checkpoint.old")
        run = make_distiller(folder)
        run.run()
        assert_same_run(run, whole)
        assert {path.name for path in folder.iterdir()} == {"best", "checkpoint", "log.jsonl"}


def test_a_run_with_other_settings_is_refused_with_the_difference(make_distiller, tmp_path):
    make_distiller(tmp_path).run(stop_after=1)
    with pytest.raises(ValueError, match=r"another configuration.*'learning_rate': \(0\.001, 0\.01\)") as caught:
        make_distiller(tmp_path, learning_rate=0.01).run()
    assert "warmup_steps" not in str(caught.value)
    assert make_distiller(tmp_path, steps=3, decay_steps=1).run().step == 3


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(make_distiller, tiny_bert, tmp_path):
    make_distiller(tmp_path).run(stop_after=2)
    before = files_of(tmp_path / "checkpoint")
    teacher = BertModel.from_pretrained(tiny_bert)
    with torch.no_grad():
        teacher.encoder.layer[1].output.dense.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="nan at step 2"):
        make_distiller(tmp_path, teacher=teacher).run()
    assert files_of(tmp_path / "checkpoint") == before
    run = make_distiller(tmp_path)
    assert run.run().step == 6
    assert all(p.isfinite().all() for p in run.student.parameters())


def test_the_best_model_is_chosen_by_the_dev_file_alone(make_distiller, dev_file, tmp_path, monkeypatch):
    scores = iter([0.3, 0.7, 0.5])
    asked = []
    weights = []

    def scripted(encode, path):
        asked.append(path)
        score = next(scores)
        return {"pearson": score, "spearman": 0.0, "pairs": 1}

    monkeypatch.setattr(loop, "evaluate_sts", scripted)
    run = make_distiller(tmp_path)
    name = "layers.0.memory.in_proj.weight"
    run.run(evaluate_every=2, on_step=lambda _: weights.append(everything(run)[name].clone()))
    assert asked == [dev_file] * 3
    assert (run.progress.best_step, run.progress.best_score) == (4, 0.7)
    best = LAMModel.from_pretrained(tmp_path / "best")
    assert torch.equal(best.get_parameter(name), weights[3])
    assert not torch.equal(best.get_parameter(name), weights[5])


def test_a_step_stands_in_the_log_once_whatever_interrupted_the_run(make_distiller, tmp_path):
    make_distiller(tmp_path / "whole").run(evaluate_every=2)
    make_distiller(tmp_path / "run").run(evaluate_every=2, stop_after=3)
    log = tmp_path / "run" / "log.jsonl"
    with log.open("a") as file:  # as if it had gone on and been killed before its next checkpoint
        file.write(
            '{"step": 4, "loss": 9.0}\n{"step": 4, "dev_pearson": 0.1, "evaluation_seconds": 1}\n{"step": 5, "lo'
        )
    make_distiller(tmp_path / "run").run(evaluate_every=2)

    def steps(folder):
        return [(record["step"], "dev_pearson" in record) for record in read_log(folder)]

    resumed = steps(tmp_path / "run")
    assert len(resumed) == len(set(resumed))
    assert set(resumed) == set(steps(tmp_path / "whole")) | {(3, False)}
    make_distiller(tmp_path / "run")  # and a start anew, without the checkpoint, begins an empty log
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    make_distiller(tmp_path / "run").run(evaluate_every=2, stop_after=1)
    assert steps(tmp_path / "run") == [(1, False)]


def test_the_best_folder_is_a_model_folder_with_the_score_in_the_log(make_distiller, tokenizer, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    run = make_distiller(tmp_path)
    run.run(evaluate_every=3)
    log = read_log(tmp_path)
    scores = {record["step"]: record["dev_pearson"] for record in log if "dev_pearson" in record}
    assert scores.keys() == {3, 6}
    assert scores[run.progress.best_step] == run.progress.best_score == max(scores.values())
    assert log[-1]["step"] == 6
    model, info = AutoModel.from_pretrained(tmp_path / "best", output_loading_info=True)
    assert not any(info.values())
    assert hidden(model, random_ids(1, 9, vocab_size=model.config.vocab_size)).isfinite().all()
    ids = AutoTokenizer.from_pretrained(tmp_path / "best")("the dog runs")["input_ids"]
    assert ids == tokenizer("the dog runs")["input_ids"]


def test_the_constructor_is_quick_and_prepare_may_be_left_to_run(tiny_bert, tokenizer, table, dev_file, tmp_path):
    arguments = {
        "student": lam_from_bert(tiny_bert, output_gate_rank=8),
        "tokenizer": tokenizer,
        "config": DistillConfig(steps=2, tokens_per_batch=80, bf16=False),
        "folder": tmp_path / "run",
        "dev_file": dev_file,
        "teacher": BertModel.from_pretrained(tiny_bert),
        "table": table,
    }
    run = Distiller(**arguments)
    assert not (tmp_path / "run").exists()
    assert not run.prepared
    assert run.run().step == 2
    assert run.prepared
    with pytest.raises(TypeError, match="positional"):
        Distiller(*arguments.values())


def test_a_teacher_of_another_geometry_is_refused(make_distiller, tiny_bert, tmp_path):
    teacher = BertModel.from_pretrained(tiny_bert)
    teacher.config.num_hidden_layers = 5
    with pytest.raises(ValueError, match="num_hidden_layers: 2 against 5"):
        make_distiller(tmp_path, teacher=teacher)


def test_every_update_takes_its_learning_rate_from_the_schedule_and_decays_matrices_only(make_distiller, tmp_path):
    run = make_distiller(tmp_path, warmup_steps=3, weight_decay=0.25)
    rates = []
    run.run(evaluate_every=1000, on_step=lambda _: rates.append([group["lr"] for group in run.optimizer.param_groups]))
    assert rates == [[1e-3 * learning_rate_factor(step, run.config)] * 2 for step in range(6)]
    for group in run.optimizer.param_groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] == 0.25}
        assert group["weight_decay"] in (0.25, 0.0)


def test_the_learning_rate_warms_up_stays_and_falls_to_nothing():
    config = DistillConfig(steps=100, warmup_steps=10, decay_steps=40)
    factors = [learning_rate_factor(step, config) for step in range(101)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10:61] == [1.0] * 51
    assert factors[61:] == pytest.approx([(100 - i) / 40 for i in range(61, 101)])
    assert factors[100] == 0
    assert learning_rate_factor(0, DistillConfig(warmup_steps=0)) == 1.0
    short = [learning_rate_factor(i, DistillConfig(steps=5, warmup_steps=50, decay_steps=50)) for i in range(6)]
    assert all(0 <= x <= 1 for x in short)


def test_feed_forward_layers_and_norms_train_with_a_rate_of_their_own(make_distiller, tmp_path):
    run = make_distiller(tmp_path, feed_forward_learning_rate=1e-4)
    before = {name: p.detach().clone() for name, p in run.student.named_parameters()}
    rates = []
    run.run(evaluate_every=1000, on_step=lambda _: rates.append([group["lr"] for group in run.optimizer.param_groups]))
    factors = [learning_rate_factor(step, run.config) for step in range(6)]
    assert rates == [[1e-3 * f] * 2 + [1e-4 * f] * 2 for f in factors]
    frozen = {name for name, p in run.student.named_parameters() if torch.equal(p, before[name])}
    assert frozen == {name for name in before if name.startswith("embeddings.")}


def test_teacher_forced_layers_read_the_teacher_and_then_themselves(make_distiller, tiny_bert, tmp_path):
    run = make_distiller(tmp_path, teacher_forced_steps=1)
    forced, losses, _ = run.batch_losses(0)
    ids = torch.from_numpy(run.batches[0])
    teacher = run.teacher(input_ids=ids, output_hidden_states=True).hidden_states
    layers = run.model.layers
    want = [
        torch.nn.functional.mse_loss(layers[i](teacher[i])[0], teacher[i + 1]) / teacher[i + 1].var() for i in (0, 1)
    ]
    assert losses["hidden"].item() == pytest.approx(sum(want).item() / 2, rel=1e-5)
    forced.backward()
    assert all(layer.memory.in_proj.weight.grad.abs().sum() > 0 for layer in layers)
    run.progress.step = 1
    assert run.batch_losses(0)[1]["hidden"].item() != pytest.approx(losses["hidden"].item(), rel=1e-3)
    run.progress.step = 0
    assert run.run(evaluate_every=1000).step == 6


def test_the_curriculum_only_sorts_its_batches_by_length(numbered_table):
    plain, ordered = (LengthBatches(numbered_table, 60, seed=1, ordered=n) for n in (0, 15))
    first = [ordered[i].shape[1] for i in range(15)]
    assert first == sorted(first)
    assert len(set(first)) > 3
    assert sorted(map(str, (plain[i] for i in range(15)))) == sorted(map(str, (ordered[i] for i in range(15))))
    assert all(np.array_equal(plain[i], ordered[i]) for i in range(15, 2 * plain.batches_per_epoch))


def test_a_full_disk_is_an_error_that_keeps_the_last_checkpoint(make_distiller, tmp_path, monkeypatch):
    make_distiller(tmp_path).run(stop_after=2)
    before = files_of(tmp_path / "checkpoint")

    def full(state, path):
        path.write_bytes(b"half of it")
        raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(loop.torch, "save", full)
        with pytest.raises(OSError, match=r"checkpoint could not be written, the one before is kept.*No space"):
            make_distiller(tmp_path).run(stop_after=1)
    assert files_of(tmp_path / "checkpoint") == before
    assert make_distiller(tmp_path).run().step == 6


def test_a_run_from_before_a_setting_existed_resumes_with_its_default(make_distiller, tmp_path):
    make_distiller(tmp_path).run(stop_after=2)
    path = tmp_path / "checkpoint" / "progress.json"
    record = json.loads(path.read_text())
    del record["config"]["teacher_forced_steps"]
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"'teacher_forced_steps': \(0, 3\)"):
        make_distiller(tmp_path, teacher_forced_steps=3).run()
    assert make_distiller(tmp_path).run().step == 6
