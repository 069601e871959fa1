"""Tiny models as folders for onnxruntime."""

from pathlib import Path
from typing import NamedTuple

import pytest

from lam_transformers import LAMModel

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
pytest.importorskip("onnx", reason="the onnx extra is not installed")

from lam_transformers.checkpoints import lam_onnx
from lam_transformers.checkpoints.onnx import export_onnx


class Exported(NamedTuple):
    """What `lam export-onnx` wrote, and of what."""

    folder: Path
    model: LAMModel
    source: Path


@pytest.fixture(scope="session")
def make_folder(make_model, tokenizer, tmp_path_factory):
    """A tiny model, exported; keyword arguments change its configuration."""

    def make(precision="float32", **changes):
        model = make_model(**changes)
        source = tmp_path_factory.mktemp("lam")
        model.save_pretrained(source)
        tokenizer.save_pretrained(source)
        folder = tmp_path_factory.mktemp("exported") / "onnx"
        export_onnx(source, folder, precision)
        return Exported(folder, model, source)

    return make


@pytest.fixture(scope="session")
def two_way(make_folder):
    return make_folder(two_way_chunk=32)


@pytest.fixture(scope="session")
def reader(two_way):
    """The module lam_onnx.py, which is the one that an exported folder has."""
    assert Path(lam_onnx.__file__).read_bytes() == (two_way.folder / "lam_onnx.py").read_bytes()
    return lam_onnx


@pytest.fixture(scope="session")
def encoder(two_way, reader):
    return reader.Encoder(two_way.folder, threads=1)
