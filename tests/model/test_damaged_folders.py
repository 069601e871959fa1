"""Folders of another model, damaged files, weights that do not fit: one clear line, and nothing is built before."""

import ast
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import lam_transformers
from lam_transformers import LAMConfig, LAMEncoder, LAMModel, LAMTransformer
from lam_transformers.checkpoints.export import export_model
from lam_transformers.checkpoints.inspect import inspect
from lam_transformers.evaluation.models import load_encoder
from lam_transformers.io.loading import load_sentence_transformer
from lam_transformers.model.checks_lam import JSON_FILES, check_is_lam, tensor_shapes

from ..bulk.bulk_helpers import save_for_encoding
from ..children import run_in_child

WEIGHTS = "model.safetensors"
ROOT = Path(lam_transformers.__file__).parents[1]


@pytest.fixture
def folder(tiny_model, tokenizer, tmp_path):
    """A whole folder, as `lam export` writes it."""
    return save_for_encoding(tiny_model, tokenizer, tmp_path / "lam")


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder, change):
    tensors = {name: change(name, x) for name, x in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def error_of(function, *arguments, **options):
    """The message of the ValueError or OSError that a call raises; it has one line."""
    with pytest.raises((ValueError, OSError)) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value), str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("load", [LAMEncoder, LAMTransformer.load, LAMModel.from_pretrained])
def test_a_folder_of_another_model_is_refused(load, tiny_bert, folder):
    message = error_of(load, str(tiny_bert))
    assert "model of type 'bert', not of a LAM" in message and "config.json" in message
    change_config(folder, model_type="bert")
    assert "model of type 'bert'" in error_of(load, str(folder))
    change_config(folder, model_type=None)
    assert "model of type 'None'" in error_of(load, str(folder))


def test_a_lam_that_calls_itself_something_else_is_refused_by_whoever_loads_it(folder):
    change_config(folder, model_type="bert")
    assert "is a LAM's, its config.json says 'bert'" in error_of(load_sentence_transformer, folder)
    assert "is a LAM's, its config.json says 'bert'" in error_of(load_encoder, folder)


def test_a_converted_checkpoint_is_not_a_lam_either(folder):
    change_config(folder, model_type="lam_published")
    assert "'lam_published'" in error_of(LAMEncoder, folder)


def test_the_table_of_shapes_is_that_of_the_model():
    for changes in ({}, {"output_gate_rank": 0}, {"output_gate_rank": None, "conv_kernel": 2, "flux_hidden_size": 3}):
        config = LAMConfig(vocab_size=9, hidden_size=24, num_attention_heads=2, num_hidden_layers=2, **changes)
        shapes = {name: list(x.shape) for name, x in LAMModel(config).state_dict().items()}
        assert tensor_shapes(config) == shapes


def load_and_inspect(folder):
    """With 6 GB of memory and a minute of processor time."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
    try:
        LAMModel.from_pretrained(folder)
    except ValueError as error:
        print(error)
    print(inspect(folder)["reason"])


@pytest.mark.parametrize("layers", [1000, 3, 1, 0, -5])
def test_a_wrong_number_of_layers_is_refused(folder, layers):
    change_config(folder, num_hidden_layers=layers)
    for message in (error_of(LAMModel.from_pretrained, folder), inspect(folder)["reason"]):
        assert "num_hidden_layers" in message and str(layers) in message


@pytest.mark.slow
def test_a_huge_number_of_layers_is_refused_before_anything_is_built(folder):
    change_config(folder, num_hidden_layers=10**9)
    ended = run_in_child(load_and_inspect, str(folder))
    assert ended.status == 0, ended.printed[-2000:]
    lines = ended.printed.splitlines()
    assert len(lines) == 2 and all("num_hidden_layers" in line and "1000000000" in line for line in lines), lines


@pytest.mark.parametrize(
    "field, value",
    [
        ("vocab_size", 10**12), ("vocab_size", 50), ("hidden_size", 32), ("hidden_size", 10**9),
        ("intermediate_size", 127), ("num_attention_heads", 4), ("conv_kernel", 3), ("flux_hidden_size", 15),
        ("output_gate_rank", 9), ("output_gate_rank", None), ("output_gate_rank", 10**12), ("position_table_size", 47),
        ("type_vocab_size", 3), ("hidden_size", "64"), ("hidden_size", None), ("hidden_size", [64]),
        ("slow_decay_init", 3), ("slow_decay_init", "ab"), ("hidden_act", "nothing"), ("hidden_act", 3),
        ("pad_token_id", 10**6), ("pad_token_id", -1), ("pad_token_id", "x"), ("layer_norm_eps", 0),
        ("layer_norm_eps", -1e-5), ("layer_norm_eps", float("nan")), ("memory_norm_eps", 0.0),
        ("memory_norm_eps", float("inf")), ("initializer_range", -1.0), ("dtype", "no such type"),
        ("use_cache", "yes"),
    ],
    ids=str,
)  # fmt: skip
def test_a_configuration_that_does_not_fit_is_named_in_one_line(folder, field, value):
    change_config(folder, **{field: value})
    for load in (LAMModel.from_pretrained, LAMEncoder, lambda path: transformers.AutoConfig.from_pretrained(path)):
        if load is LAMEncoder or load == LAMModel.from_pretrained or not isinstance(value, int | None):
            message = error_of(load, folder)
            assert "LAM" in message or "config.json" in message or field in message


@pytest.mark.parametrize("kind", [torch.int32, torch.bool, torch.int8, torch.float8_e4m3fn], ids=str)
def test_weights_that_are_no_floats_are_refused_by_name(folder, kind):
    change_weights(folder, lambda name, x: x.to(kind) if name == "layers.1.memory.out_proj.weight" else x)
    message = error_of(LAMModel.from_pretrained, folder)
    assert "layers.1.memory.out_proj.weight" in message and "floats" in message


@pytest.mark.parametrize("name", ["layers.1.memory.flux.bilinear", "embeddings.LayerNorm.bias"])
def test_a_wrong_shape_is_refused_by_name(folder, name):
    change_weights(folder, lambda key, x: x[..., :-1].contiguous() if key == name else x)
    message = error_of(LAMModel.from_pretrained, folder)
    assert name in message and "config.json implies" in message
    assert name in inspect(folder)["reason"]


DAMAGE = {
    "cut short": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "not UTF-8": lambda data: data[:1] + b"\xff\xfe" + data[1:],
    "of another kind": lambda data: b"[1]" if data.lstrip()[:1] == b"{" else b"{}",
    "null": lambda data: b"null",
    "nested without end": lambda data: b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", sorted(JSON_FILES))
def test_a_damaged_json_file_is_one_clear_line(folder, name, damage):
    path = folder / name
    path.write_bytes(DAMAGE[damage](path.read_bytes() if path.exists() else b'{"a": 1}'))
    message = error_of(LAMEncoder, folder)
    assert str(path) in message and "damaged" in message


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(folder):
    for name in ("config.json", WEIGHTS):
        (folder / name).rename(folder / "kept")
        os.mkfifo(folder / name)
        assert "no regular file but a pipe" in error_of(LAMModel.from_pretrained, folder)
        assert "no regular file but a pipe" in error_of(LAMEncoder, folder)
        (folder / name).unlink()
        (folder / "kept").rename(folder / name)


def test_what_is_not_a_folder_is_looked_for_in_the_cache_of_the_hub(monkeypatch, folder, tiny_bert):
    asked = []

    def cached_file(name, file, **options):
        asked.append((name, file, options))
        return str((folder if name == "someone/lam" else tiny_bert) / file)

    monkeypatch.setattr("lam_transformers.model.checks_lam.cached_file", cached_file)
    check_is_lam("someone/lam", revision="abc", cache_dir=None)
    assert asked == [("someone/lam", "config.json", {"subfolder": "", "revision": "abc", "cache_dir": None})]
    assert "type 'bert'" in error_of(check_is_lam, "someone/bert")


def test_a_folder_in_a_folder(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "outer" / "inner")
    module = LAMTransformer.load(str(tmp_path / "outer"), subfolder="inner")
    assert module.model.config.model_type == "lam"


def test_weights_with_nan_are_not_exported(folder, tmp_path):
    change_weights(folder, lambda name, x: x * float("nan") if name == "layers.1.memory_norm.bias" else x)
    message = error_of(export_model, folder, tmp_path / "out")
    assert "layers.1.memory_norm.bias" in message and "NaN or Inf" in message
    assert not (tmp_path / "out").exists()


def test_an_encoder_is_what_modules_json_says_and_nothing_from_elsewhere(folder):
    text = "the dog plays the guitar"
    assert LAMEncoder(folder).encode(text) == pytest.approx(LAMEncoder(folder).model.encode(text))
    modules = json.loads((folder / "modules.json").read_text())

    def with_modules(*content):
        (folder / "modules.json").write_text(json.dumps(content))
        return folder

    norm = float(torch.tensor(LAMEncoder(with_modules(modules[0])).encode(text)).norm())
    assert abs(norm - 1) > 1e-3
    assert "no part of sentence-transformers" in error_of(
        LAMEncoder, with_modules(modules[0], modules[1] | {"type": "os.path"})
    )
    for place in ("../elsewhere", "/etc", "a/../../b"):
        assert "lies outside" in error_of(LAMEncoder, with_modules(modules[0], modules[1] | {"path": place}))


def test_the_package_never_runs_code_that_comes_with_a_model_unless_told():
    """Every auto class is told so: left alone, transformers asks on the terminal."""
    calls = 0
    for file in Path(lam_transformers.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            flag = given.get("trust_remote_code")
            assert not (isinstance(flag, ast.Constant) and flag.value is not False), (file, node.lineno)
            name = ast.unparse(node.func)
            if name.startswith("Auto") and name.endswith((".from_pretrained", ".from_config")):
                calls += 1
                assert flag is not None or None in given, (file, node.lineno)
    assert calls > 9
