"""A whole bulk run: every row with its place and embedding, a kill on the way, what the command says."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lam_transformers.bulk import EncodeOptions, encode_files
from lam_transformers.bulk import run as run_module

from ..helpers import run_lam
from .bulk_helpers import (
    RecordedProgress,
    assert_same_output,
    fake_engine,
    read_output,
    sentences,
    tree,
    write_lines,
    write_records,
)

ROOT = Path(__file__).resolve().parents[2]


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
    assert f"{done * 50:,} of them were there before" in run_lam(*arguments)
    assert kept.items() <= tree(out).items()
    rows = read_output(out)
    assert [row[:2] for row in rows] == [(str(path), i) for i in range(1500)]
    whole = tmp_path / "whole"
    encode_files([path], whole, str(bulk_model), EncodeOptions(shard_rows=50, batch_size=8))
    assert_same_output(out, whole, 1e-6)


def test_an_input_that_changes_under_the_run(fake, corpus, tmp_path, monkeypatch):
    def engine(model, options, blocks):
        yield from fake_engine(model, options, blocks)
        with corpus[0][0].open("ab") as file:
            file.write(b'{"text": "more", "id": 0}\n')

    monkeypatch.setattr(run_module, "encode_locally", engine)
    with pytest.raises(ValueError, match="changed while it was read"):
        fake(corpus[0], tmp_path / "out")


def test_the_command_says_it_in_one_line(tmp_path):
    path = write_lines(tmp_path / "a.txt", [b"x"])

    def run(*arguments):
        output = run_lam("encode", *arguments, "--out", tmp_path / "out", code=1).strip()
        assert output.startswith("lam: ") and "\n" not in output
        return output

    assert "neither a folder" in run(path, "--model", tmp_path / "none")
    assert "neither a folder" in run(path, "--model", "none")
    assert "truncate_dim is 0" in run(path, "--truncate-dim", 0)
    assert "workers is 2; it needs the ray engine" in run(path, "--workers", 2)
    assert "does not exist" in run(tmp_path / "b.txt")
