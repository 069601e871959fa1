"""`lam encode`: every row once and in order, whatever interrupts a run."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lam_transformers.bulk import EncodeOptions, encode_files
from lam_transformers.bulk import run as run_module
from lam_transformers.bulk.block_encoder import BlockEncoder
from lam_transformers.bulk.output import OutputFolder
from lam_transformers.bulk.rows import Block, Row, open_inputs, read_blocks
from lam_transformers.bulk.write_npy import NpyShard
from lam_transformers.bulk.write_parquet import ParquetShard
from lam_transformers.cli.app import app
from lam_transformers.io.loading import pin_model

from .bulk_helpers import (
    RecordedProgress,
    assert_same_output,
    fake_embedding,
    fake_engine,
    read_output,
    read_skipped,
    save_for_encoding,
    sentences,
    tree,
    write_lines,
    write_records,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def bulk_model(tiny_model, tokenizer, tmp_path_factory):
    """The tiny model as a folder that SentenceTransformer loads."""
    return save_for_encoding(tiny_model, tokenizer, tmp_path_factory.mktemp("bulk") / "tiny-lam")


@pytest.fixture
def fake(monkeypatch, bulk_model):
    """encode_files with an engine that needs no time; options as keyword arguments."""
    monkeypatch.setattr(run_module, "encode_locally", fake_engine)
    return lambda files, out, model=bulk_model, **options: encode_files(
        files, out, str(model), EncodeOptions(**{"shard_rows": 10, "batch_size": 1} | options)
    )


@pytest.fixture
def corpus(tmp_path):
    """(files, expected): four kinds of files, and (file, row, text) of each of their rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = sentences(90)
    parts = [texts[:25], texts[25:41], texts[41:47], texts[47:]]
    objects = [json.dumps({"id": i, "text": text}).encode() for i, text in enumerate(parts[0])]
    files = [write_lines(tmp_path / "a.jsonl", [*objects[:3], b"", *objects[3:]])]
    files.append(write_records(tmp_path / "b.jsonl.gz", [{"text": text, "id": f"b{text[:2]}"} for text in parts[1]]))
    files.append(write_records(tmp_path / "c.ndjson.xz", [{"id": -i, "text": text} for i, text in enumerate(parts[2])]))
    table = pa.table({"other": range(43), "text": parts[3], "id": pa.array(range(43), pa.int32())})
    pq.write_table(table, tmp_path / "d.parquet", row_group_size=20)
    files.append(tmp_path / "d.parquet")
    numbers = [[*range(3), *range(4, 26)], range(16), range(6), range(43)]
    expected = [
        (str(file), number, text)
        for file, rows, part in zip(files, numbers, parts, strict=True)
        for number, text in zip(rows, part, strict=True)
    ]
    return files, expected


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_all_rows_in_order_with_their_place_and_embedding(corpus, bulk_model, tmp_path, format):
    from sentence_transformers import SentenceTransformer

    files, expected = corpus
    options = EncodeOptions(format=format, id_column="id", shard_rows=40, batch_size=4)
    progress = RecordedProgress()
    summary = encode_files(files, tmp_path / "out", str(bulk_model), options, progress=progress)
    rows = read_output(tmp_path / "out")
    assert [row[:2] for row in rows] == [place[:2] for place in expected]
    assert [row[2] for row in rows[:3]] == ["0", "1", "2"] and rows[25][2] == "b25" and rows[-1][2] == "42"
    direct = SentenceTransformer(str(bulk_model), trust_remote_code=True).encode([place[2] for place in expected])
    assert np.abs(np.stack([row[3] for row in rows]) - direct).max() < 1e-6
    assert (summary.rows, summary.shards, summary.skipped) == (90, 3, 0)
    assert summary.counts.tokens > 90 * 3
    assert len(progress.advanced) == 3 and min(progress.advanced) > 0
    assert sum(progress.advanced) == progress.total == sum(file.stat().st_size for file in files)
    assert progress.notes[-1].startswith("Encoding  90 texts  ") and progress.notes[-1].endswith(" tokens/s")
    again = encode_files(files, tmp_path / "out", str(bulk_model), options)
    assert (again.rows, again.resumed_rows, again.counts.rows) == (90, 90, 0)


def test_plain_text_has_a_row_for_every_line(fake, tmp_path):
    lines = [b"\xef\xbb\xbffirst", b"", "caf\u00e9 \u2028 one line\r".encode(), b"last"]
    path = write_lines(tmp_path / "a.txt", lines)
    fake([path], tmp_path / "out")
    rows = read_output(tmp_path / "out")
    texts = ["first", "", "caf\u00e9 \u2028 one line", "last"]
    assert [row[1] for row in rows] == [0, 1, 2, 3]
    assert all(np.array_equal(row[3], fake_embedding(text)) for row, text in zip(rows, texts, strict=True))


def test_no_rows_at_all(fake, tmp_path):
    assert fake([write_lines(tmp_path / "a.txt", [])], tmp_path / "out").shards == 0
    assert fake([tmp_path / "a.txt"], tmp_path / "out").rows == 0


def test_options_reach_the_model(corpus, bulk_model, tmp_path):
    def run(name, **options):
        encode_files(corpus[0][:1], tmp_path / name, str(bulk_model), EncodeOptions(**options))
        return np.stack([row[3] for row in read_output(tmp_path / name)])

    whole = run("whole")
    cut = run("cut", truncate_dim=16, precision="float16")
    wanted = whole[:, :16] / np.linalg.norm(whole[:, :16], axis=1, keepdims=True)
    assert cut.dtype == np.float64 and np.abs(cut - wanted).max() < 1e-3
    assert np.array_equal(run("bits", precision="ubinary", prompt_name="query"), np.packbits(whole > 0, axis=1))
    assert run("signed", precision="binary").min() < 0
    assert np.abs(run("raw", truncate_dim=16, normalize=False) - whole[:, :16]).max() < 1e-6
    with pytest.raises(ValueError, match="truncate_dim is 65, .* has 64"):
        run("wide", truncate_dim=65)
    with pytest.raises(ValueError, match="nothing"):
        run("prompt", prompt_name="nothing")
    run("prompt", prompt_name="document")  # nothing was finished in that folder: it may begin otherwise


@pytest.mark.parametrize(
    "options, message",
    [
        ({"format": "csv"}, "format is 'csv'; choose one of parquet, npy"),
        ({"precision": "int8"}, "precision is 'int8'"),
        ({"on_error": "ask"}, "on_error is 'ask'"),
        ({"shard_rows": 0}, "shard_rows is 0"),
        ({"batch_size": True}, "batch_size is True"),
        ({"truncate_dim": -1}, "truncate_dim is -1"),
        ({"text_column": ""}, "text_column is ''"),
    ],
)
def test_unfit_options(options, message):
    with pytest.raises(ValueError, match=message):
        EncodeOptions(**options)


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


def test_kill_9_and_resume(bulk_model, tmp_path):
    texts = sentences(1500)
    path = write_records(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    out = tmp_path / "out"
    arguments = ["encode", str(path), "--out", str(out), "--model", str(bulk_model), "--shard-rows", "50"]
    arguments += ["--batch-size", "8"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "lam_transformers.cli", *arguments], env=environment, stderr=subprocess.PIPE
    )

    def manifest():
        file = out / "manifest.json"
        return json.loads(file.read_text()) if file.exists() else {"shards": [], "complete": False}

    while process.poll() is None and len(manifest()["shards"]) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    message = process.communicate()[1].decode()
    assert process.returncode == -signal.SIGKILL, message
    done = len(manifest()["shards"])
    assert 2 <= done < 30 and not manifest()["complete"]
    kept = {name: data for name, data in tree(out).items() if name.startswith(tuple(f"part-{i:05d}" for i in range(2)))}
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert f"{done * 50:,} of them were there before" in result.output
    assert kept.items() <= tree(out).items()
    rows = read_output(out)
    assert [row[:2] for row in rows] == [(str(path), i) for i in range(1500)]
    whole = tmp_path / "whole"
    encode_files([path], whole, str(bulk_model), EncodeOptions(shard_rows=50, batch_size=8))
    assert_same_output(out, whole, 1e-6)


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


def test_an_input_that_changes_under_the_run(fake, corpus, tmp_path, monkeypatch):
    def engine(model, options, blocks):
        yield from fake_engine(model, options, blocks)
        with corpus[0][0].open("ab") as file:
            file.write(b'{"text": "more", "id": 0}\n')

    monkeypatch.setattr(run_module, "encode_locally", engine)
    with pytest.raises(ValueError, match="changed while it was read"):
        fake(corpus[0], tmp_path / "out")


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_blocks_hold_every_row_once_from_any_start(tmp_path_factory, data):
    lines = data.draw(
        st.lists(st.lists(st.sampled_from([b'{"text": "a b"}', b"", b"{", b"[]"]), max_size=9), max_size=4)
    )
    folder = tmp_path_factory.mktemp("blocks")
    files = [write_lines(folder / f"{i}.jsonl", [b'{"text": "first"}', *x]) for i, x in enumerate(lines)]
    files = files or [write_lines(folder / "0.jsonl", [])]
    sources = open_inputs(files, "text", None)
    sizes = {"block_rows": data.draw(st.integers(1, 5)), "shard_rows": data.draw(st.integers(1, 7))}

    def rows(start):
        blocks = list(read_blocks(sources, start, "text", None, **sizes))
        assert all(0 < len(block.rows) <= sizes["block_rows"] for block in blocks)
        return [row for block in blocks for row in block.rows]

    every = rows((0, 0))
    wanted = [(i, n) for i, x in enumerate(lines) for n, line in enumerate([b"first", *x]) if line]
    assert [(row.file, row.number) for row in every] == wanted
    for i, row in enumerate(every):
        assert rows((row.file, row.number)) == every[i:]
        assert rows((row.file, row.number + 1)) == every[i + 1 :]


def test_a_long_file_is_read_as_it_is_needed(tmp_path):
    path = write_lines(tmp_path / "a.txt", [b"word " * 20] * 20_000 + [b"x" * 5_000_000] * 2)
    blocks = read_blocks(open_inputs([path], "text", None), (0, 0), "text", None, 1000, 10_000)
    assert next(blocks).bytes_read < 500_000
    assert [len(block.rows) for block in blocks] == [1000] * 19 + [1, 1]


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
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 1 and "needs code of its own" in refused.output
    assert "--trust-remote-code" in refused.output.strip().splitlines()[-1]
    assert not witness.exists()
    CliRunner().invoke(app, [*arguments, "--trust-remote-code"])
    assert witness.exists()


def test_the_model_is_pinned(bulk_model, tmp_path, monkeypatch):
    found = pin_model(str(bulk_model))
    assert found.revision is None and found == pin_model(str(bulk_model))
    copy = tmp_path / "copy"
    shutil.copytree(bulk_model, copy)
    (copy / "README.md").write_text("other words")
    assert pin_model(str(copy)).identity == found.identity
    moved = pin_model(str(copy))
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    assert pin_model(str(copy)).identity != found.identity
    with pytest.raises(OSError, match="is not the model that the run began with"):
        BlockEncoder(moved, EncodeOptions())
    with pytest.raises(OSError, match="nowhere is neither a folder here nor"):
        pin_model(str(tmp_path / "nowhere"))
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda name, file: f"/cache/snapshots/0123abcd/{file}")
    hub = pin_model("someone/model")
    assert (hub.location, hub.revision, hub.identity) == ("someone/model", "0123abcd", "commit 0123abcd")
