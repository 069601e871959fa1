"""`lam convert`: every form of a published checkpoint becomes a folder with the same embeddings, or a clear error."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from lam_transformers.checkpoints.convert import convert
from lam_transformers.checkpoints.report import format_report

from ..helpers import assert_close_rms, hidden, random_ids, run_lam
from ..published import published_reference
from .published_checkpoints import FULL, SMALL, as_one_file, cloned, memory_layer, one_file, two_files

LENGTH = 70  # padded to 96: one chunk under "flat", three under "main"


def assert_same_embeddings(folder, weights, rule, geometry=SMALL, length=LENGTH):
    ids = random_ids(1, length, vocab_size=geometry.vocab)
    model = AutoModel.from_pretrained(folder)
    assert model.config.rule == rule
    weights = {name: x.numpy() for name, x in weights.items()}
    want = published_reference.embedding(weights, ids[0].numpy(), geometry.heads, rule)
    got = torch.nn.functional.normalize(hidden(model, ids)[0].mean(0), dim=0)
    assert_close_rms("embedding", got, torch.from_numpy(want), 1e-5)


@pytest.mark.parametrize("layout", ["final", "main"])
@pytest.mark.parametrize("form", ["aliased", "copies", "feature_proj", "wrapped", "legacy", "safetensors"])
def test_one_file(source, out, layout, form):
    weights = one_file(layout, SMALL, feature_proj=form == "feature_proj")
    stored = cloned(weights) if form in ("copies", "safetensors") else weights
    path = source / ("model.safetensors" if form == "safetensors" else "pytorch_model.bin")
    if form == "safetensors":
        save_file(stored, path)
    elif form == "legacy":
        torch.save(stored, path, _use_new_zipfile_serialization=False)
    elif form == "wrapped":
        torch.save({"model_state_dict": stored, "step": 7, "config": {"lr": 1e-4}}, path)
    else:
        torch.save(stored, path)
    report = convert([source], out)
    rule = "flat" if layout == "final" else "main"
    assert_same_embeddings(out, weights, rule)
    assert (report["layout"], report["rule"], report["kind"]) == (layout, rule, "one file")
    how = {pair["how"] for pair in report["duplicates"]}
    assert how == ({"equal values"} if form in ("copies", "safetensors") else {"same storage"})
    assert len(report["duplicates"]) == 5 + 2 + 6 * SMALL.layers
    assert ("feature_proj" in report["unused"]) == (form == "feature_proj")
    assert report["sources"][0]["notes"] == ({"step": 7} if form == "wrapped" else {})
    assert json.loads((out / "conversion.json").read_text()) == report


@pytest.mark.parametrize("form", ["folder", "two paths", "two paths, base first", "wrapped base"])
def test_two_files(source, out, form):
    base, tweak = two_files(SMALL)
    weights = as_one_file(base, tweak)
    torch.save({"model": base} if form == "wrapped base" else base, source / "lam_base.bin")
    torch.save(tweak | {"pearson": np.float64(0.8365), "spearman": np.float64(0.8372)}, source / "lam_tweak.pt")
    pair = [source / "lam_tweak.pt", source / "lam_base.bin"]
    sources = {"folder": [source], "wrapped base": [source], "two paths": pair}.get(form, pair[::-1])
    report = convert(sources, out)
    assert_same_embeddings(out, weights, "main")
    assert [x["file"] for x in report["sources"]] == ["lam_tweak.pt", "lam_base.bin"]
    assert report["sources"][0]["notes"] == {"step": 4000, "pearson": 0.8365, "spearman": 0.8372}
    assert report["kind"] == "two files"
    assert {"projections", "emb_projection", "position counter", "pooler"} <= report["unused"].keys()
    assert len(report["replaced"]) == 8 * SMALL.layers
    assert not report["duplicates"]
    text = format_report(report)
    assert "encoder.layer.0.output.dense.bias gives way to output_dense_layers.0.bias" in text
    assert "published breakdown" not in text
    entries = report["entries"]
    assert entries["in_files"] == entries["replaced"] + entries["unused"] + entries["kept"]
    assert json.loads((out / "sentence_bert_config.json").read_text())["max_seq_length"] == 128
    assert AutoTokenizer.from_pretrained(out).model_max_length == 128


@pytest.mark.parametrize("wrapper", ["deltanet_layers", "model_state_dict"])
def test_a_training_checkpoint_and_its_base(source, out, tmp_path, wrapper):
    base, tweak = two_files(SMALL, layers_name="deltanet_layers")
    weights = as_one_file(base, tweak)
    torch.save(base, tmp_path / "base.bin")
    parts = {name: x for name, x in tweak.items() if name != "step"}
    if wrapper == "model_state_dict":
        parts = {wrapper: {f"{part}.{name}": x for part, tensors in parts.items() for name, x in tensors.items()}}
    state = {"state": {0: {"exp_avg": torch.zeros(3), "step": torch.tensor(4.0)}}, "param_groups": [{"lr": 1e-4}]}
    parts |= {"optimizer_state_dict": state, "scheduler_state_dict": {"last_epoch": 3}, "step": 9, "config": {"a": [1]}}
    torch.save(parts, source / "checkpoint.pt")
    report = convert([source], out, base=tmp_path / "base.bin")
    assert_same_embeddings(out, weights, "main")
    assert report["unused"]["optimizer_state_dict"] == {"tensors": 2, "entries": 4}


def test_a_rule_can_be_asked_for(source, out):
    weights = one_file("final", SMALL)
    torch.save(weights, source / "pytorch_model.bin")
    convert([source / "pytorch_model.bin"], out, rule="main")
    assert_same_embeddings(out, weights, "main")


def test_stored_types_are_kept_and_computed_in_float32(source, out):
    weights = {name: x.half() for name, x in one_file("final", SMALL).items()}
    torch.save(weights, source / "pytorch_model.bin")
    convert([source], out)
    assert {x.dtype for x in load_file(out / "model.safetensors").values()} == {torch.float16}
    assert AutoModel.from_pretrained(out).dtype == torch.float32
    assert_same_embeddings(out, weights, "flat")


def test_a_plain_minilm_folder_is_started_as_by_lam_init(tiny_bert, tmp_path):
    run_lam("init", tiny_bert, tmp_path / "init", "--gate", "8")
    message = run_lam("convert", tiny_bert, tmp_path / "convert", "--gate", "8")
    assert "It needs training" in message
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("init", "convert"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    names = [{path.name for path in (tmp_path / name).iterdir()} for name in ("init", "convert")]
    assert names[0] == names[1]


@pytest.mark.parametrize("fault", ["wrapped", "incomplete", "other sizes", "NaN"])
@pytest.mark.usefixtures("nothing_left")
def test_a_minilm_folder_that_would_load_half_is_refused(tiny_bert, source, out, fault):
    """transformers fills what it does not find with random numbers and only warns."""
    for path in tiny_bert.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    name = "encoder.layer.1.output.dense.weight"
    changed = {
        "wrapped": {"model": weights},
        "incomplete": {key: x for key, x in weights.items() if key != name},
        "other sizes": weights | {name: weights[name][:, :5]},
        "NaN": weights | {name: weights[name] * float("nan")},
    }
    torch.save(changed[fault], source / "pytorch_model.bin")
    message = {"wrapped": "are wrapped", "NaN": "NaN or Inf"}.get(fault, f"do not fit its config.json, such as {name}")
    with pytest.raises(ValueError, match=message):
        convert([source], out)


@pytest.fixture(scope="module")
def full(tmp_path_factory, tokenizer):
    """The 43-million-entry file, what was put into it, and its conversion's report and folder."""
    folder = tmp_path_factory.mktemp("full")
    tokenizer.save_pretrained(folder)
    weights = one_file()
    path = folder / "pytorch_model.bin"
    torch.save(weights, path)
    report = convert([path], folder / "out")
    return path, weights, report, folder / "out"


def test_the_full_size_file_has_the_published_numbers(full):
    path, _, report, out = full
    assert abs(path.stat().st_size - 109_707_839) < 50_000
    entries = report["entries"]
    chain = [entries[name] for name in ("in_files", "without_second_embeddings", "unique", "kept")]
    assert chain == [43_020_756, 31_102_164, 27_396_948, 23_700_948]
    assert report["tensors"] == {"in_files": 338, "distinct_storages": 295, "kept": 245}
    breakdown = {name: row["entries"] for name, row in report["published_breakdown"].items()}
    assert breakdown == {
        "DeltaNet": 8_236_500, "embeddings": 11_918_592, "FFN": 7_981_056, "layer norms": 9_216,
        "base/attention": 2_661_120, "other": 295_680,
    }  # fmt: skip
    assert {name: row["entries"] for name, row in report["kept"].items()} == {
        "embeddings": 11_918_592, "memory layers": 4_683_732, "intermediate.dense": 3_548_160,
        "output.dense": 3_541_248, "norms": 9_216,
    }  # fmt: skip
    assert sum(pair["entries"] for pair in report["duplicates"]) == entries["duplicate"] == 15_623_808
    assert report["bytes"]["model.safetensors"] == (out / "model.safetensors").stat().st_size < 96_000_000
    text = format_report(report)
    assert "43,020,756 -> 31,102,164 (embedding duplicates only) -> 27,396,948 (all duplicates) -> 23,700,948" in text
    assert all(f"{number:,}" in text for number in breakdown.values())
    assert text.count("(same storage)") == 43


def test_the_full_size_file_keeps_its_embeddings(full):
    _, weights, _, out = full
    assert_same_embeddings(out, weights, "flat", FULL, 40)


def test_the_main_layout_has_its_published_numbers():
    counts = [len(memory_layer(torch.Generator(), layout, FULL)) for layout in ("final", "main")]
    assert counts == [32, 28]
    sizes = [
        sum(x.numel() for x in memory_layer(torch.Generator(), layout, FULL).values()) for layout in ("final", "main")
    ]
    assert sizes == [780_622, 768_301]
    assert 338 - 6 * (32 - 28) == 314


MEASURE = """
import json, sys, time
import torch
from lam_transformers.checkpoints.convert import convert
import lam_transformers.published.modeling_lam_published

def peak():
    return next(int(x.split()[1]) * 1024 for x in open("/proc/self/status") if x.startswith("VmHWM"))

before, began = peak(), time.perf_counter()
convert([sys.argv[1]], sys.argv[2])
print(json.dumps([peak() - before, time.perf_counter() - began]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc to measure memory")
@pytest.mark.parametrize("form", ["aliased", "copies"])
def test_the_conversion_needs_little_memory_and_time(full, tmp_path, form):
    path, weights, _, _ = full
    if form == "copies":
        (tmp_path / "tokenizer.json").write_bytes((path.parent / "tokenizer.json").read_bytes())
        path = tmp_path / "copies.bin"
        torch.save(cloned(weights), path)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), str(tmp_path / "out")], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    memory, seconds = json.loads(done.stdout.splitlines()[-1])
    assert memory < 2.5 * path.stat().st_size
    assert seconds < 20


def _cut(weights, path):
    torch.save(weights, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _change(name, change):
    def save(weights, path):
        weights = dict(weights)
        weights[name] = change(weights[name].clone())
        torch.save(weights, path)

    return save


def _without(*starts):
    def save(weights, path):
        torch.save({name: x for name, x in weights.items() if not name.startswith(starts)}, path)

    return save


def _with(name, tensor):
    return lambda weights, path: torch.save(weights | {name: tensor}, path)


def _set(value):
    def change(x):
        x.view(-1)[3] = value
        return x

    return change


MEMORY = "deltanet_layers.1.k_proj.weight"


TEACHER = "teacher_model.encoder.layer.0."


BROKEN = {
    "cut short": (_cut, OSError, r"damaged, cut short or no checkpoint"),
    "empty": (lambda _, path: path.write_bytes(b""), OSError, "damaged, cut short"),
    "text": (lambda _, path: path.write_text("<html>not found</html>"), OSError, "damaged, cut short"),
    "NaN": (_change(MEMORY, _set(float("nan"))), ValueError, rf"{MEMORY} of .* has 1 values that are NaN"),
    "Inf": (_change(TEACHER + "output.dense.bias", _set(float("inf"))), ValueError, "1 values that are NaN or Inf"),
    "NaN where nothing reads": (
        _change(TEACHER + "attention.self.key.bias", _set(float("nan"))), ValueError, "self.key.bias .* NaN or Inf",
    ),
    "integers": (_change(MEMORY, lambda x: x.long()), ValueError, f"{MEMORY} .*torch.int64, expected floating-point"),
    "wrong shape": (
        _change(MEMORY, lambda x: x[:, :-1]), ValueError, rf"{MEMORY} has shape \[96, 95\], the other tensors imply",
    ),
    "unequal duplicates": (
        _change("embeddings.word_embeddings.weight", lambda x: x + 0.25), ValueError,
        r"teacher_model.embeddings.word_\S+ and embeddings.word_embeddings.weight .* differ by up to 0.25",
    ),
    "duplicates of two shapes": (
        _change("embeddings.word_embeddings.weight", lambda x: x[:50]), ValueError,
        r"shapes \[109, 96\] and \[50, 96\]",
    ),
    "missing layer": (_without("deltanet_layers.1."), ValueError, r"32 tensors are missing.*deltanet_layers.1"),
    "missing first layer": (_without("deltanet_layers.0."), ValueError, r"deltanet_layers.0.*is missing"),
    "no memory": (_without("deltanet_layers."), ValueError, "deltanet_layers|BERT"),
    "no embeddings": (
        _without("teacher_model.embeddings.", "embeddings."), ValueError, r"is missing: give the model .*--base",
    ),
    "missing tensor": (_without("deltanet_layers.1.o_norm.gate"), ValueError, "1 tensors are missing.*o_norm.gate"),
    "unknown tensor": (_with("head.weight", torch.ones(2)), ValueError, r"such as head.weight.*--drop head"),
    "tensor without a place": (
        _with("deltanet_layers.1.new.weight", torch.ones(2)), ValueError,
        r"deltanet_layers.1.new.weight, have no place",
    ),
    "a layer too many": (_with("ffn_norms.9.bias", torch.ones(96)), ValueError, "are missing"),
    "a huge layer number": (
        _with("deltanet_norms.999999999.weight", torch.ones(96)), ValueError, "The layers are numbered",
    ),
    "an expanded tensor": (
        _with(MEMORY, torch.ones(1).expand(10**6, 10**6)), ValueError, "more than the file stores for it",
    ),
    "a sparse tensor": (_with(MEMORY, torch.eye(3).to_sparse()), ValueError, "no plain tensor"),
    "twice": (
        lambda weights, path: torch.save({"model": weights, "state_dict": weights}, path), ValueError, "twice",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.usefixtures("nothing_left")
def test_a_broken_checkpoint_is_a_clear_error_and_leaves_nothing(source, out, case):
    save, error, message = BROKEN[case]
    path = source / "pytorch_model.bin"
    save(one_file("final", SMALL), path)
    with pytest.raises(error, match=message):
        convert([path], out)


KILLED = """
import os, signal, sys
from lam_transformers.checkpoints import convert
convert.save_tensors = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
convert.convert([sys.argv[1]], sys.argv[2])
"""


def test_what_a_killed_conversion_left_is_removed_by_the_next_one(source, out):
    torch.save(one_file("final", SMALL), source / "pytorch_model.bin")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(source), str(out)], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == -9, done.stderr
    (left,) = out.parent.glob(".out.*.tmp")
    running = out.parent / f".out.{os.getpid()}-0123abcd.tmp"
    running.mkdir()
    other = out.parent / f".out2{left.name.removeprefix('.out')}"
    other.mkdir()
    convert([source], out)
    assert set(out.parent.glob(".out*")) == {running, other}
    assert (out / "model.safetensors").exists()


def test_unknown_tensors_can_be_left_out_on_request(source, out):
    weights = one_file("final", SMALL)
    torch.save(weights | {"head.weight": torch.ones(2)}, source / "pytorch_model.bin")
    report = convert([source], out, drop=["head"])
    assert report["unused"]["left out on request"] == {"tensors": 1, "entries": 2}
    assert_same_embeddings(out, weights, "flat")


def test_an_output_folder_that_exists_is_refused_and_untouched(source, out):
    torch.save(one_file("final", SMALL), source / "pytorch_model.bin")
    out.mkdir()
    with pytest.raises(FileExistsError, match="exists; choose a new folder"):
        convert([source], out)
    assert not list(out.iterdir())
    with pytest.raises(FileNotFoundError, match="does not exist; make it first"):
        convert([source], out / "a" / "b")


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("to", ["published", "gated_delta"])
def test_a_disk_that_fills_up_leaves_nothing(source, out, to):
    """A limit on the size of files stands for the disk."""
    torch.save(one_file("final", SMALL), source / "pytorch_model.bin")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(OSError):
            convert([source], out, to=to)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("nothing_left")
def test_an_interruption_leaves_nothing(source, out, monkeypatch):
    torch.save(one_file("final", SMALL), source / "pytorch_model.bin")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lam_transformers.checkpoints.convert.save_tensors", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert([source], out)


@pytest.mark.usefixtures("nothing_left")
def test_sources_that_are_not_clear_are_errors(source, out):
    with pytest.raises(ValueError, match="holds no checkpoint"):
        convert([source], out)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        convert([source / "no.bin"], out)
    base, tweak = two_files(SMALL)
    torch.save(tweak, source / "one.pt")
    torch.save(tweak, source / "two.pt")
    with pytest.raises(ValueError, match=r"several checkpoints: one.pt, two.pt; name"):
        convert([source], out)
    with pytest.raises(ValueError, match="got 2 and 0"):
        convert([source / "one.pt", source / "two.pt"], out)
    torch.save(base, source / "base.bin")
    with pytest.raises(ValueError, match="give the folder with its config.json"):
        convert([source / "base.bin"], out)
    with pytest.raises(ValueError, match="--to must be one of"):
        convert([source], out, to="softmax")
    with pytest.raises(ValueError, match="--rule must be"):
        convert([source], out, rule="other")


def test_a_lam_folder_is_no_source(tiny_folder, out):
    with pytest.raises(ValueError, match="is a LAM folder's already"):
        convert([tiny_folder], out)


def test_the_command_prints_the_report_and_the_card_names_the_source(source, out):
    torch.save(one_file("final", SMALL), source / "pytorch_model.bin")
    message = run_lam("convert", source / "pytorch_model.bin", out)
    assert "same storage" in message
    report = json.loads((out / "conversion.json").read_text())
    card = (out / "README.md").read_text()
    assert report["sources"][0]["sha256"] in card
    assert "`pytorch_model.bin`" in card
    assert "Give the source" in run_lam("convert", source, code=1)
