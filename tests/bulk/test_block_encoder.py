"""The model of a bulk run: refused texts, its identity, and code that comes with it."""

import json
import shutil

import numpy as np
import pytest

from lam_transformers.bulk import EncodeOptions, encode_files
from lam_transformers.bulk.block_encoder import BlockEncoder
from lam_transformers.bulk.rows import Block, Row
from lam_transformers.io.loading import pin_model

from ..helpers import run_lam
from .bulk_helpers import assert_same_output, write_lines


def test_texts_that_the_model_refuses_do_not_spoil_the_others(bulk_model, monkeypatch):
    encoder = BlockEncoder(pin_model(str(bulk_model)), EncodeOptions(precision="float16"))
    working = encoder.model.encode

    def encode(texts, **options):
        if "bad" in texts:
            raise ValueError("no such text")
        return np.stack(
            [x * (1e9 if text == "huge" else 1) for text, x in zip(texts, working(texts, **options), strict=True)]
        )

    monkeypatch.setattr(encoder.model, "encode", encode)
    rows = [Row(0, i, None, text, None) for i, text in enumerate(["the cat", "bad", "huge", "a dog"])]
    encoded = encoder(Block(rows, 0))
    assert encoded.rows[1].error == "the model refuses the text (no such text)"
    assert encoded.rows[2].error == "the embedding is not finite in float16"
    assert encoded.embeddings.shape == (2, 64)
    assert [row.error for row in encoded.rows[::3]] == [None, None]


HOSTILE = """
open({witness!r}, "w").write("executed")
from sentence_transformers.base.modules import InputModule
class Own(InputModule):
    pass
"""


def test_code_that_comes_with_a_model_runs_only_when_asked_for(bulk_model, tmp_path):
    folder, witness = tmp_path / "model", tmp_path / "executed"
    shutil.copytree(bulk_model, folder)
    for file in folder.glob("*.py"):  # a LAM folder runs on the package's own code, whatever lies in it
        file.write_text(HOSTILE.format(witness=str(witness)))
    path = write_lines(tmp_path / "a.txt", [b"the dog", b"a cat"])
    encode_files([path], tmp_path / "out", str(folder))
    encode_files([path], tmp_path / "right", str(bulk_model))
    assert not witness.exists()
    assert_same_output(tmp_path / "out", tmp_path / "right")
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "own_module.Own"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "own_module.py").write_text(HOSTILE.format(witness=str(witness)))
    arguments = ["encode", str(path), "--out", str(tmp_path / "own"), "--model", str(folder)]
    refused = run_lam(*arguments, code=1)
    assert "needs code of its own" in refused
    assert "--trust-remote-code" in refused.strip().splitlines()[-1]
    assert not witness.exists()
    run_lam(*arguments, "--trust-remote-code", code=1)  # there is no model in that code, but it ran
    assert witness.exists()


def test_a_model_that_is_another_one_by_now_is_refused(bulk_model, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(bulk_model, copy)
    pinned = pin_model(str(copy))
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    with pytest.raises(OSError, match="is not the model that the run began with"):
        BlockEncoder(pinned, EncodeOptions())
