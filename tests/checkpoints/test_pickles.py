"""Checkpoint files that are hostile, broken or cut: a clear error, and nothing of them is executed."""

import os
import pickle
import struct
import time
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lam_transformers.checkpoints.convert import convert
from lam_transformers.checkpoints.pickles import read_checkpoint

from ..helpers import run_lam
from .published_checkpoints import SMALL, one_file


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle"])
def test_a_hostile_pickle_is_refused_by_name_and_not_executed(source, out, tmp_path, form):
    witness, path = tmp_path / "executed", source / "pytorch_model.bin"
    content = one_file("final", SMALL) | {"extra": Hostile(witness)}
    if form == "plain pickle":
        path.write_bytes(pickle.dumps({"extra": Hostile(witness)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    message = run_lam("convert", source, out, code=1)
    assert "posix.system" in message
    assert "nothing of it was executed" in message
    assert not witness.exists()
    assert not out.exists()
    assert "posix.system" in run_lam("inspect", path, code=1)
    assert not witness.exists()


def test_other_numpy_objects_are_refused(source, out):
    torch.save(one_file("final", SMALL) | {"scores": np.arange(3)}, source / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"asks for numpy\S*multiarray._reconstruct"):
        convert([source], out)


@pytest.mark.usefixtures("nothing_left")
def test_containers_without_end_are_refused(source, out):
    nested: dict = {}
    for _ in range(40):
        nested = {"a": nested, "b": nested}
    torch.save(nested, source / "pytorch_model.bin")
    began = time.monotonic()
    with pytest.raises(ValueError, match="nests more than"):
        convert([source], out)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("length", [2**63, 2**40, 10**6, 0])
def test_a_safetensors_header_is_bounded_before_it_is_read(tmp_path, length):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3)}, path)
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    with pytest.raises(OSError, match="is damaged"):
        read_checkpoint(path)


def test_a_truncated_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(300)}, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(OSError, match="is damaged"):
        read_checkpoint(path)
    path.write_bytes(b"\x01")
    with pytest.raises(OSError, match="is damaged"):
        read_checkpoint(path)


def test_a_zip_that_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "a")
    with pytest.raises(OSError, match="damaged, cut short or no checkpoint"):
        read_checkpoint(path)


def _archive(path, method, data=b"x" * 1000):
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/data/0", data)


@pytest.mark.usefixtures("nothing_left")
def test_a_compressed_archive_is_refused_before_anything_is_unpacked(source, out, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    path = source / "pytorch_model.bin"
    _archive(path, zipfile.ZIP_DEFLATED, bytes(300 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ValueError, match=r"'archive/data.pkl' is compressed \([\d,]+ bytes become 314,572,800\)"):
        convert([path], out)


@pytest.mark.parametrize("place", [24, 42], ids=["a size that is not there", "entries that overlap"])
def test_entries_that_claim_more_than_the_file_has_are_refused(source, monkeypatch, place):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    path = source / "pytorch_model.bin"
    _archive(path, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")  # the last entry of the directory
    if place == 24:
        data[at + place : at + place + 4] = struct.pack("<I", 1 << 31)
    else:
        data[at + 20 : at + 28] = struct.pack("<II", *[len(data) - 100] * 2)
    path.write_bytes(data)
    with pytest.raises((ValueError, OSError), match="claim|damaged"):
        read_checkpoint(path)


def test_a_pipe_is_refused_and_not_waited_for(source, out):
    os.mkfifo(source / "pytorch_model.bin")
    with pytest.raises(OSError, match="no regular file but a pipe"):
        convert([source / "pytorch_model.bin"], out)
    with pytest.raises(OSError, match="no regular file but a pipe"):
        read_checkpoint(source / "pytorch_model.bin")
    assert "no regular file" in run_lam("inspect", source / "pytorch_model.bin", code=1)


class Blocked:
    def __reduce__(self):
        return getattr, ("text", "upper")


def _rewrite(path, name, content):
    """The zip archive with other bytes in one entry."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for key, data in entries.items():
            archive.writestr(key, content if key.endswith(name) else data)


@pytest.mark.parametrize("form", ["object", "legacy object", "plain", "cut pickle", "garbage", "other opcode"])
def test_no_message_advises_to_load_without_safeguards(tmp_path, form):
    path = tmp_path / "a.bin"
    if form == "plain":
        path.write_bytes(pickle.dumps({"a": Blocked()}, protocol=2))
    elif "object" in form:
        torch.save({"a": Blocked()}, path, _use_new_zipfile_serialization=form == "object")
    else:
        torch.save({"a": torch.ones(3)}, path)
        content = {"cut pickle": b"\x80\x02}q\x00", "garbage": b"\xff" * 50, "other opcode": b"\x80\x02(I1\nI2\nd."}
        _rewrite(path, "data.pkl", content[form])
    with pytest.raises((OSError, ValueError)) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in ("weights_only", "torch.load", "trust", "add_safe_globals"):
        assert word not in message
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    assert run_lam("inspect", path, code=1).startswith("lam: ")
