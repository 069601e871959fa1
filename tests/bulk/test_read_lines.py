"""JSON lines and plain text that are broken or hostile, and what becomes of the rows around them."""

import gzip
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from lam_transformers.bulk import read_lines

from ..model.test_damaged_folders import ROOT
from .bulk_helpers import fake_embedding, read_output, read_skipped, tree, write_lines

GOOD = b'{"text": "good", "id": 1}'


BAD_LINES = [
    (b'{"text": "cut off', "broken JSON"),
    (b"[" * 100_000, "broken JSON"),
    (b'{"text": ' + b"9" * 5000 + b"}", "broken JSON"),
    (b'["text"]', "not a JSON object but of type list"),
    (b'{"words": "x", "id": 1}', "column 'text' is missing"),
    (b'{"text": "x"}', "column 'id' is missing"),
    (b'{"text": null, "id": 1}', "'text' is null"),
    (b'{"text": 3.5, "id": 1}', "'text' is of type float, not a string"),
    (b'{"text": ["x"], "id": 1}', "'text' is of type list, not a string"),
    (b'{"text": "ab\\ud800", "id": 1}', "'text' holds a lone surrogate at character 2"),
    (b'{"text": "x", "id": "\\udfff"}', "'id' holds a lone surrogate at character 0"),
    (b'{"text": "x", "id": null}', "'id' is null"),
    (b'{"text": "x", "id": true}', "'id' is of type bool"),
    (b'{"text": "x\xff", "id": 1}', "not UTF-8 (byte 11 of the line)"),
]


@pytest.mark.parametrize("line, reason", BAD_LINES)
def test_a_bad_line_stops_or_is_skipped(fake_pairs, tmp_path, line, reason):
    path, out = write_lines(tmp_path / "a.jsonl", [GOOD] * 5 + [line] + [GOOD] * 3), tmp_path / "out"
    with pytest.raises(ValueError) as caught:
        fake_pairs([path], out, id_column="id")
    assert f"{path}, row 5 (line 6): {reason}" in str(caught.value) and "--on-error skip" in str(caught.value)
    assert [row[1] for row in read_output(out)] == [0, 1, 2, 3]
    summary = fake_pairs([path], out, id_column="id", on_error="skip")
    assert (summary.rows, summary.skipped, summary.resumed_rows) == (8, 1, 4)
    assert [row[1] for row in read_output(out)] == [0, 1, 2, 3, 4, 6, 7, 8]
    ((file, number, why),) = read_skipped(out)
    assert (file, number) == (str(path), 5) and why.startswith(reason)


def test_a_shard_of_bad_rows_only(fake_pairs, tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [GOOD, GOOD, b"{", b"{", GOOD])
    summary = fake_pairs([path], tmp_path / "out", on_error="skip")
    assert (summary.rows, summary.skipped, summary.shards) == (3, 2, 3)
    assert sorted(tree(tmp_path / "out")) == [
        ".lock", "manifest.json", "part-00000.parquet", "part-00002.parquet", "skipped.jsonl",
    ]  # fmt: skip


def test_plain_text_has_a_row_for_every_line(fake, tmp_path):
    lines = [b"\xef\xbb\xbffirst", b"", "caf\u00e9 \u2028 one line\r".encode(), b"last"]
    path = write_lines(tmp_path / "a.txt", lines)
    fake([path], tmp_path / "out")
    rows = read_output(tmp_path / "out")
    texts = ["first", "", "caf\u00e9 \u2028 one line", "last"]
    assert [row[1] for row in rows] == [0, 1, 2, 3]
    assert all(np.array_equal(row[3], fake_embedding(text)) for row, text in zip(rows, texts, strict=True))


def test_a_pipe_as_an_input_is_refused_and_not_waited_for(fake_pairs, tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=r"a\.jsonl is a pipe, a socket or a device"):
        fake_pairs([tmp_path / "a.jsonl"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ending", [".txt.gz", ".jsonl.xz"])
def test_an_archive_of_no_bytes_is_no_archive(fake_pairs, tmp_path, ending):
    (tmp_path / f"a{ending}").write_bytes(b"")
    with pytest.raises(OSError, match="has 0 bytes, which is no archive"):
        fake_pairs([tmp_path / f"a{ending}"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_line_that_is_too_long_is_a_row_like_any_other_that_cannot_be_encoded(fake_pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(read_lines, "LONGEST_LINE", 1 << 20)
    longest = b"x" * (1 << 20)
    path = write_lines(tmp_path / "a.txt", [b"one", longest, longest + b"x", longest * 3, b"", b"last"])
    fake_pairs([path], tmp_path / "out", on_error="skip")
    assert [row[1] for row in read_output(tmp_path / "out")] == [0, 1, 4, 5]
    assert read_skipped(tmp_path / "out") == [(str(path), i, "the line is longer than 1 MiB") for i in (2, 3)]
    path.write_bytes(b"one\n" + longest * 2)  # and without an end
    with pytest.raises(ValueError, match=r"row 1 \(line 2\): the line is longer than 1 MiB"):
        fake_pairs([path], tmp_path / "out2")


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


def test_an_archive_that_was_cut_stops_with_its_finished_shards_valid(fake_pairs, tmp_path):
    texts = [f"text {i} {'x' * 50}" for i in range(40)]
    packed = write_lines(tmp_path / "b.txt.gz", [json.dumps(texts).encode() * 20] * 30)
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(OSError, match=r"b\.txt\.gz, row \d+ \(line \d+\): the file cannot be read on"):
        fake_pairs([packed], tmp_path / "out", on_error="skip")
    assert len(read_output(tmp_path / "out")) % 2 == 0 and len(read_output(tmp_path / "out")) > 0
