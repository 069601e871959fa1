"""Bulk folders that the version before wrote: finished ones are checked, interrupted ones are finished."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lam_transformers import LAMEncoder
from lam_transformers.bulk import EncodeOptions, encode_files

from .bulk_helpers import read_output, read_skipped, tree

BEFORE = Path(__file__).resolve().parents[1] / "fixtures" / "bulk"


@pytest.fixture
def again(tmp_path, monkeypatch):
    """Gives the command of the version before once more, in a copy of the folder in which it ran."""
    shutil.copytree(BEFORE, tmp_path / "bulk")
    monkeypatch.chdir(tmp_path / "bulk")
    options = {"id_column": "id", "shard_rows": 40, "batch_size": 1, "on_error": "skip"}
    return lambda out, **more: encode_files(["texts.jsonl"], out, "model", EncodeOptions(**options, **more))


def test_a_finished_folder_is_complete_and_checked(again):
    before = tree(Path("finished"))
    summary = again("finished")
    assert (summary.rows, summary.skipped, summary.shards, summary.resumed_rows) == (99, 1, 3, 99)
    assert summary.counts.rows == 0
    assert before.items() <= tree(Path("finished")).items()
    shard = Path("finished", "part-00001.parquet")
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    with pytest.raises(OSError, match="part-00001.parquet has changed since it was finished"):
        again("finished")


def test_an_interrupted_folder_is_finished_where_it_was_left(again):
    kept = {name: data for name, data in tree(Path("interrupted")).items() if name.startswith("part-00000")}
    summary = again("interrupted", format="npy")
    assert (summary.rows, summary.skipped, summary.shards, summary.resumed_rows) == (99, 1, 3, 40)
    assert kept.items() <= tree(Path("interrupted")).items()
    assert not list(Path("interrupted").glob("*.tmp"))
    rows, finished = read_output(Path("interrupted")), read_output(Path("finished"))
    assert [row[:3] for row in rows] == [row[:3] for row in finished]
    assert np.abs(np.stack([row[3] for row in rows]) - np.stack([row[3] for row in finished])).max() < 1e-6
    assert [place[:2] for place in read_skipped(Path("interrupted"))] == [("texts.jsonl", 50)]


def test_its_embeddings_are_those_of_this_version(again):
    texts = [json.loads(line)["text"] for line in Path("texts.jsonl").read_text().splitlines() if line != "broken"]
    wanted = np.stack([row[3] for row in read_output(Path("finished"))])
    assert np.abs(LAMEncoder("model").encode(texts) - wanted).max() < 1e-6


def test_another_model_is_refused(again):
    with Path("model", "config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match="with the model model as it was then"):
        again("interrupted", format="npy")
