"""The output folder: every row once and in order, whatever interrupts a run or changes the folder between two runs."""

import errno
import hashlib
import json
import os
import shutil

import pytest

from lam_transformers.bulk import EncodeOptions, encode_files
from lam_transformers.bulk import run as run_module
from lam_transformers.bulk.output import OutputFolder
from lam_transformers.bulk.write_npy import NpyShard
from lam_transformers.bulk.write_parquet import ParquetShard

from .bulk_helpers import assert_same_output, fake_engine, read_output, read_skipped, tree, write_lines


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_a_resume_from_any_moment_gives_the_same_output(fake, corpus, tmp_path, monkeypatch, format):
    """A copy of the folder is taken around every step that could be the last one of a killed run."""
    files = [*corpus[0], write_lines(tmp_path / "e.jsonl", [b'{"text": "x", "id": 1}', b"broken", b"{}"] * 11)]
    options = {"format": format, "on_error": "skip", "id_column": "id", "shard_rows": 12}
    out, moments = tmp_path / "out", []

    def watched(function):
        def call(*arguments):
            snapshot()
            result = function(*arguments)
            snapshot()
            return result

        return call

    def snapshot():
        if out.exists() and out.is_dir():
            content = tree(out)
            if not moments or content != tree(moments[-1]):
                moments.append(tmp_path / f"moment-{len(moments)}")
                shutil.copytree(out, moments[-1])

    with monkeypatch.context() as patch:
        for owner, name in ((os, "replace"), (os, "fsync"), (OutputFolder, "add"), (OutputFolder, "_append_skipped")):
            patch.setattr(owner, name, watched(getattr(owner, name)))
        fake(files, out, **options)
    rows = read_output(out)
    assert len(rows) == len({row[:2] for row in rows}) == 90 + 11
    assert len(read_skipped(out)) == 22
    assert len(moments) > 40
    for moment in moments:
        fake(files, moment, **options)
        assert_same_output(moment, out)
        assert tree(moment).keys() == tree(out).keys(), moment.name


@pytest.mark.parametrize("format", ["parquet", "npy"])
@pytest.mark.parametrize("place", ["add", "close", "fsync", "replace", "_append_skipped", "_write_manifest"])
def test_a_full_disk_loses_nothing(fake, corpus, tmp_path, monkeypatch, format, place):
    files, options = corpus[0], {"format": format, "on_error": "skip"}
    fake(files, tmp_path / "whole", **options)
    owner = {"add": ParquetShard if format == "parquet" else NpyShard, "fsync": os, "replace": os}.get(place)
    owner = owner or (OutputFolder if place.startswith("_") else ParquetShard if format == "parquet" else NpyShard)
    working, calls = getattr(owner, place), []

    def full(*arguments):
        calls.append(0)
        if len(calls) == 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return working(*arguments)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(owner, place, full)
        with pytest.raises(OSError, match=r"part-\d+\.\w+ cannot be written \(No space left.*run the same") as caught:
            fake(files, out, **options)
    assert caught.value.errno == errno.ENOSPC
    done = json.loads((out / "manifest.json").read_text())["shards"]
    assert 0 < len(done) < 9 and len(read_output(out)) == 10 * len(done)
    assert not list(out.glob("part-*.tmp"))
    fake(files, out, **options)
    assert_same_output(out, tmp_path / "whole")


def test_a_resume_with_anything_else_is_refused(fake, corpus, tiny_folder, tmp_path):
    files, out = corpus[0], tmp_path / "out"
    with pytest.raises(ValueError, match="broken"):
        fake([*files, write_lines(tmp_path / "e.jsonl", [b'{"text": "x"}', b"broken"])], out)
    before = tree(out)

    def refused(message, given=None, **options):
        with pytest.raises(ValueError, match=message):
            fake(given or [*files, tmp_path / "e.jsonl"], out, **options)
        assert tree(out) == before

    refused("begun otherwise: with 5 input files, not 4", files)
    refused("with the input .*a.jsonl where .*b.jsonl.gz is given now", files[::-1][2:])
    refused("with shard_rows 10, not 11", shard_rows=11)
    refused("with normalize True, not False", normalize=False)
    refused("with the model .* as it was then", model=tiny_folder)
    write_lines(tmp_path / "e.jsonl", [b'{"text": "x"}', b'{"text": 1}'])
    refused("with other contents of .*e.jsonl")
    write_lines(tmp_path / "e.jsonl", [b'{"text": "x"}', b"broken"])
    assert fake([*files, tmp_path / "e.jsonl"], out, on_error="skip", batch_size=2).rows == 91
    (out / "part-00001.parquet").write_bytes(b"")
    with pytest.raises(OSError, match="part-00001.parquet has changed"):
        fake([*files, tmp_path / "e.jsonl"], out)
    (out / "part-00001.parquet").unlink()
    with pytest.raises(OSError, match="part-00001.parquet is missing"):
        fake([*files, tmp_path / "e.jsonl"], out)


def test_a_folder_with_something_else_is_left_alone(fake, corpus, tmp_path):
    for name, content in (("notes.txt", "mine"), ("manifest.json", '{"a": 1}'), ("manifest.json", "broken")):
        out = tmp_path / f"other-{name}-{len(content)}"
        out.mkdir()
        (out / name).write_text(content)
        with pytest.raises(ValueError, match="choose"):
            fake(corpus[0], out)
        assert tree(out) == {name: content.encode()}
    with pytest.raises(ValueError, match="is a file"):
        fake(corpus[0], corpus[0][0])


def test_two_runs_do_not_share_a_folder(fake, corpus, tmp_path, monkeypatch, bulk_model):
    def engine(model, options, blocks):
        with pytest.raises(ValueError, match="in use by another run"):
            encode_files(corpus[0], tmp_path / "out", str(bulk_model), EncodeOptions(shard_rows=10, batch_size=1))
        return fake_engine(model, options, blocks)

    monkeypatch.setattr(run_module, "encode_locally", engine)
    assert fake(corpus[0], tmp_path / "out").rows == 90


@pytest.fixture
def finished(fake_pairs, tmp_path):
    """A finished run with skipped rows: its input, its folder, and a function that runs it again."""
    good = b'{"text": "good"}'
    path = write_lines(tmp_path / "a.jsonl", [good, b"broken", good, good, b"{}", good])
    out = tmp_path / "out"

    def again():
        return fake_pairs([path], out, on_error="skip", format="npy")

    again()
    return path, out, again


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
