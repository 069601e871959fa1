"""A folder that `lam convert` of the version before wrote loads, and gives the embeddings that it gave then."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lam_transformers.checkpoints.inspect import inspect
from lam_transformers.io.loading import load_sentence_transformer

BEFORE = Path(__file__).resolve().parents[1] / "fixtures" / "converted"
STRANGER = """
import json, sys
from sentence_transformers import SentenceTransformer
texts = json.loads(sys.stdin.read())
model = SentenceTransformer(sys.argv[1], trust_remote_code=True)
assert "lam_transformers" not in sys.modules
print(json.dumps(model.encode(texts).tolist()))
"""


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(BEFORE / "folder", tmp_path / "folder"))


@pytest.fixture(scope="module")
def record():
    content = json.loads((BEFORE / "embeddings.json").read_text())
    return [x["text"] for x in content], np.array([x["embedding"] for x in content])


def test_it_loads_on_the_code_of_the_package(folder, record):
    texts, wanted = record
    assert np.abs(load_sentence_transformer(folder).encode(texts) - wanted).max() < 1e-6


def test_it_loads_as_a_stranger_on_its_own_code(folder, record):
    texts, wanted = record
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(folder)],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert np.abs(np.array(json.loads(done.stdout)) - wanted).max() < 1e-6


def test_it_is_described(folder):
    inspection = inspect(folder)
    assert inspection["what"] == "a converted published checkpoint"
    assert inspection["loads"]
