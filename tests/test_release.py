"""LAM-base-v1 as a stranger meets it: a folder, offline, an empty cache, no package."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from handbook import ROOT

from lam_transformers.checkpoints.export import SHIPPED_CODE, shipped_file
from lam_transformers.model.checks_lam import weights_checksum

RELEASE = ROOT / "LAM-base-v1"
FILES = {
    "1_Normalize/config.json", "README.md", "config.json", "config_sentence_transformers.json", "model.safetensors",
    "modules.json", "sentence_lam_config.json", "tokenizer.json", "tokenizer_config.json", *SHIPPED_CODE,
}  # fmt: skip
TEXTS = [
    "A man is playing a guitar on the street.",
    "",
    "[PAD] and [SEP] stand here literally, [MASK] too.",
    "\u4e2d\u6587 \u0416\u0418\u0417\u041d\u042c caf\u00e9 \U0001f642",
    "\ue000\ue001\ue002",
    "word " * 700,
]
PRELUDE = """
import sys, json
{hide}
import numpy as np, torch
from transformers import AutoModel, AutoTokenizer
texts = json.loads(sys.argv[1])

def embed(model, tokenizer):
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model.eval()(**batch).last_hidden_state
    weights = batch["attention_mask"].unsqueeze(-1).float()
    return torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1).numpy()
"""
HIDE = "sys.modules['lam_transformers'] = None"
STRANGER = """
model, info = AutoModel.from_pretrained("LAM-base-v1", trust_remote_code=True, output_loading_info=True)
assert not any(info.values()), info
assert model.dtype == torch.float32, model.dtype
assert "transformers_modules" in type(model).__module__
tokenizer = AutoTokenizer.from_pretrained("LAM-base-v1", trust_remote_code=True)
assert tokenizer.model_max_length > 10**9
np.save(sys.argv[2], embed(model, tokenizer))
"""
REGISTERED = """
import lam_transformers
model, info = AutoModel.from_pretrained("LAM-base-v1", output_loading_info=True)
assert not any(info.values()), info
assert type(model).__module__ == "lam_transformers.model.modeling_lam"
np.save(sys.argv[2], embed(model, AutoTokenizer.from_pretrained("LAM-base-v1")))
"""
SENTENCE_TRANSFORMERS = """
from sentence_transformers import SentenceTransformer
np.save(sys.argv[2], SentenceTransformer("LAM-base-v1", trust_remote_code=True).encode(texts))
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder with nothing but LAM-base-v1."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(RELEASE, folder / "LAM-base-v1")
    return folder


def run_door(checkout, cache, body, hide):
    out = cache / "embeddings.npy"
    code = PRELUDE.format(hide=HIDE if hide else "") + body
    environment = {**os.environ, "HF_HOME": str(cache / "hub"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, json.dumps(TEXTS), str(out)],
        cwd=checkout, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(out)


def test_three_doors_give_the_same_finite_unit_embeddings(checkout, tmp_path_factory):
    doors = {
        "stranger": (STRANGER, True),
        "registered": (REGISTERED, False),
        "sentence-transformers": (SENTENCE_TRANSFORMERS, True),
    }
    got = {name: run_door(checkout, tmp_path_factory.mktemp("cache"), *door) for name, door in doors.items()}
    for name, embeddings in got.items():
        assert np.isfinite(embeddings).all(), name
        assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5), name
        assert np.abs(embeddings - got["stranger"]).max() < 1e-5, name


def test_the_folder_holds_exactly_what_it_should():
    files = {str(p.relative_to(RELEASE)) for p in RELEASE.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert files == FILES


@pytest.mark.parametrize("name", SHIPPED_CODE)
def test_shipped_code_is_the_packages_own(name):
    assert (RELEASE / name).read_bytes() == shipped_file(name).read_bytes(), "run `lam export` to refresh LAM-base-v1"


@pytest.mark.parametrize("name", SHIPPED_CODE)
def test_shipped_code_is_short_and_flat(name):
    text = shipped_file(name).read_text()
    assert len(text.splitlines()) < 450
    relative = [line for line in text.splitlines() if line.strip().startswith("from .")]
    assert all(line.split()[1].lstrip(".") + ".py" in SHIPPED_CODE for line in relative), relative


def named_files(name: str) -> set[str]:
    """The files of a folder that transformers finds named in one of them: relative imports, wherever they are."""
    return {f"{x}.py" for x in re.findall(r"^\s*from\s+\.(\S+)\s+import", shipped_file(name).read_text(), re.MULTILINE)}


@pytest.mark.parametrize(
    "name", ["configuration_lam.py", "modeling_lam.py", "heads_lam.py", "sentence_transformers_module.py"]
)
def test_a_file_that_is_asked_for_names_all_that_it_needs(name):
    """transformers 5.4 copies those out of a folder, and not what they in their turn import."""
    needed: set[str] = set()
    unread = named_files(name)
    while unread:
        needed |= unread
        unread = set().union(*map(named_files, unread)) - needed
    assert needed - {name} <= named_files(name)


def test_weights_are_small_half_precision_and_checked():
    from safetensors import safe_open

    path = RELEASE / "model.safetensors"
    assert path.stat().st_size <= 50e6
    with safe_open(path, framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
        assert file.metadata()["sha256"] == weights_checksum(path)
    assert json.loads((RELEASE / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.slow
def test_saved_again_it_still_loads_as_a_stranger(tmp_path, tmp_path_factory):
    """save_pretrained from the registered class and from sentence-transformers both carry the code along."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(RELEASE), trust_remote_code=True)
    folder = tmp_path / "LAM-base-v1"
    encoder.save_pretrained(str(folder))
    for name in SHIPPED_CODE:
        assert (folder / name).exists(), name
    got = run_door(tmp_path, tmp_path_factory.mktemp("cache"), SENTENCE_TRANSFORMERS, True)
    assert np.abs(got - encoder.encode(TEXTS)).max() < 1e-5
