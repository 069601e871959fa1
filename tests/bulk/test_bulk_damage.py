"""`lam encode` where files are hostile, or an output folder was changed between two runs."""

import gzip
import hashlib
import json
import os
import subprocess
import sys

import pytest

from lam_transformers.bulk import EncodeOptions, encode_files
from lam_transformers.bulk import read_lines as reading
from lam_transformers.bulk import run as run_module

from ..model.test_damaged_folders import ROOT
from .bulk_helpers import fake_engine, read_output, read_skipped, tree, write_lines

GOOD = b'{"text": "good"}'


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """encode_files with an engine that needs no time and a folder in place of a model."""
    monkeypatch.setattr(run_module, "encode_locally", fake_engine)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    return lambda files, out, **options: encode_files(
        files, out, str(model), EncodeOptions(**{"shard_rows": 2, "batch_size": 1, "format": "npy"} | options)
    )


def test_a_pipe_as_an_input_is_refused_and_not_waited_for(fake, tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=r"a\.jsonl is a pipe, a socket or a device"):
        fake([tmp_path / "a.jsonl"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ending", [".txt.gz", ".jsonl.xz"])
def test_an_archive_of_no_bytes_is_no_archive(fake, tmp_path, ending):
    (tmp_path / f"a{ending}").write_bytes(b"")
    with pytest.raises(OSError, match="has 0 bytes, which is no archive"):
        fake([tmp_path / f"a{ending}"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_line_that_is_too_long_is_a_row_like_any_other_that_cannot_be_encoded(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LONGEST_LINE", 1 << 20)
    longest = b"x" * (1 << 20)
    path = write_lines(tmp_path / "a.txt", [b"one", longest, longest + b"x", longest * 3, b"", b"last"])
    fake([path], tmp_path / "out", on_error="skip")
    assert [row[1] for row in read_output(tmp_path / "out")] == [0, 1, 4, 5]
    assert read_skipped(tmp_path / "out") == [(str(path), i, "the line is longer than 1 MiB") for i in (2, 3)]
    path.write_bytes(b"one\n" + longest * 2)  # and without an end
    with pytest.raises(ValueError, match=r"row 1 \(line 2\): the line is longer than 1 MiB"):
        fake([path], tmp_path / "out2")


BOMB = """
import resource, sys
from lam_transformers.bulk.rows import open_inputs, read_blocks

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

before = peak()
for block in read_blocks(open_inputs([sys.argv[1]], "text", None), (0, 0), "text", None, 10, 10):
    print([row.error for row in block.rows])
assert peak() - before < 300, peak() - before
"""


def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path):
    path = tmp_path / "bomb.txt.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(512):
            file.write(bytes(1 << 20))
    done = subprocess.run(
        [sys.executable, "-c", BOMB, str(path)], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "['the line is longer than 64 MiB']\n"


@pytest.fixture
def finished(fake, tmp_path):
    """A finished run with skipped rows: its input, its folder, and a function that runs it again."""
    path = write_lines(tmp_path / "a.jsonl", [GOOD, b"broken", GOOD, GOOD, b"{}", GOOD])
    out = tmp_path / "out"
    fake([path], out, on_error="skip")
    return path, out, lambda: fake([path], out, on_error="skip")


def test_a_flipped_bit_in_a_finished_shard_is_noticed(finished):
    _, out, again = finished
    assert again().rows == 4
    for name in ("part-00001.npy", "part-00001.rows.jsonl"):
        data = bytearray((out / name).read_bytes())
        data[-3] ^= 1
        (out / name).write_bytes(data)
        before = tree(out)
        with pytest.raises(OSError, match=rf"{name} has changed since it was finished"):
            again()
        assert tree(out) == before
        data[-3] ^= 1
        (out / name).write_bytes(data)
    assert again().rows == 4


@pytest.mark.parametrize("damage", ["deleted", "cut", "changed"])
@pytest.mark.parametrize("complete", [True, False])
def test_skipped_rows_that_were_lost_between_two_runs_are_noticed(finished, damage, complete):
    _, out, again = finished
    skipped = out / "skipped.jsonl"
    data = skipped.read_bytes()
    if not complete:  # as if the run had been killed before its last shard
        manifest = json.loads((out / "manifest.json").read_text())
        for name in manifest["shards"].pop()["files"]:
            (out / name).unlink()
        first = data.splitlines(keepends=True)[0]
        manifest |= {"complete": False, "next": {"file": 0, "row": 4}, "skipped_bytes": len(first)}
        manifest["skipped_sha256"] = hashlib.sha256(first).hexdigest()
        (out / "manifest.json").write_text(json.dumps(manifest))
    if damage == "deleted":
        skipped.unlink()
    else:
        skipped.write_bytes(data[:20] if damage == "cut" else data.replace(b"broken", b"BROKEN"))
    with pytest.raises(OSError, match="skipped.jsonl (is missing|was cut|has changed) since"):
        again()
    assert b"\0" not in (skipped.read_bytes() if skipped.exists() else b"")


def test_rows_that_an_interrupted_run_skipped_beyond_its_last_shard_are_no_damage(finished):
    _, out, again = finished
    with (out / "skipped.jsonl").open("ab") as file:
        file.write(b'{"of a shard": "that was not finished"}\n')
    assert again().skipped == 2


def test_a_manifest_of_the_version_before_has_no_hashes(finished):
    _, out, again = finished
    manifest = json.loads((out / "manifest.json").read_text())
    assert all(len(value) == 64 for shard in manifest["shards"] for value in shard["sha256"].values())
    for shard in manifest["shards"]:
        del shard["sha256"]
    del manifest["skipped_sha256"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert again().rows == 4


def _without(*keys):
    def change(manifest):
        for key in keys[:-1]:
            manifest = manifest[key]
        del manifest[keys[-1]]

    return change


def _with(value, *keys):
    def change(manifest):
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(_without(key) for key in ("model", "options", "inputs", "complete", "next", "skipped_bytes", "shards")),
        _without("model", "fingerprint"), _without("next", "row"), _without("inputs", 0, "size"),
        _without("shards", 0, "files"), _without("shards", 0, "rows"), _with(None, "shards"), _with("x", "next", "row"),
        _with(-1, "skipped_bytes"), _with([3], "shards"), _with({"../../etc/passwd": 3}, "shards", 0, "files"),
        _with({"part-00000.npy": "x"}, "shards", 0, "files"), _with(9, "next", "file"),
        _with([], "shards", 0, "sha256"),
    ],
)  # fmt: skip
def test_a_damaged_manifest_is_one_clear_line_and_nothing_is_touched(finished, change):
    _, out, again = finished
    manifest = json.loads((out / "manifest.json").read_text())
    change(manifest)
    (out / "manifest.json").write_text(json.dumps(manifest))
    before = tree(out)
    with pytest.raises(ValueError, match=r"manifest.json is damaged \(.*\); choose another folder") as caught:
        again()
    assert "\n" not in str(caught.value)
    assert tree(out) == before
