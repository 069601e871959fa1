"""A source with the toy tokenizer, a place for the output, a converted folder."""

import json

import pytest
import torch

from lam_transformers.checkpoints.convert import convert

from .published_checkpoints import SMALL, one_file


@pytest.fixture
def source(tmp_path, tokenizer):
    """A folder with the toy tokenizer, whose files fix truncation and padding as the published ones do."""
    folder = tmp_path / "source"
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["truncation"] = {"max_length": 128, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    content["padding"] = {
        "strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "[PAD]",
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def nothing_left(tmp_path, source):
    """After the test, the folder in which the output would lie holds what it held before, hidden files included."""
    before = {path.name for path in tmp_path.iterdir()}
    yield
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.fixture
def converted(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "source")
    torch.save(one_file("final", SMALL), tmp_path / "source" / "pytorch_model.bin")
    convert([tmp_path / "source"], tmp_path / "out")
    return tmp_path / "out"
