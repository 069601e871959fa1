"""What `lam encode` says to inputs that are broken, and what becomes of the rows around them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from lam_transformers.bulk import EncodeOptions, encode_files
from lam_transformers.bulk import run as run_module
from lam_transformers.cli.app import app

from .bulk_helpers import fake_embedding, fake_engine, read_output, read_skipped, tree, write_lines, write_records


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """encode_files with an engine that needs no time and a folder in place of a model."""
    monkeypatch.setattr(run_module, "encode_locally", fake_engine)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    return lambda files, out, **options: encode_files(
        files, out, str(model), EncodeOptions(**{"shard_rows": 2, "batch_size": 1} | options)
    )


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
def test_a_bad_line_stops_or_is_skipped(fake, tmp_path, line, reason):
    path, out = write_lines(tmp_path / "a.jsonl", [GOOD] * 5 + [line] + [GOOD] * 3), tmp_path / "out"
    with pytest.raises(ValueError) as caught:
        fake([path], out, id_column="id")
    assert f"{path}, row 5 (line 6): {reason}" in str(caught.value) and "--on-error skip" in str(caught.value)
    assert [row[1] for row in read_output(out)] == [0, 1, 2, 3]
    summary = fake([path], out, id_column="id", on_error="skip")
    assert (summary.rows, summary.skipped, summary.resumed_rows) == (8, 1, 4)
    assert [row[1] for row in read_output(out)] == [0, 1, 2, 3, 4, 6, 7, 8]
    ((file, number, why),) = read_skipped(out)
    assert (file, number) == (str(path), 5) and why.startswith(reason)


def test_a_shard_of_bad_rows_only(fake, tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [GOOD, GOOD, b"{", b"{", GOOD])
    summary = fake([path], tmp_path / "out", on_error="skip")
    assert (summary.rows, summary.skipped, summary.shards) == (3, 2, 3)
    assert sorted(tree(tmp_path / "out")) == [
        ".lock", "manifest.json", "part-00000.parquet", "part-00002.parquet", "skipped.jsonl",
    ]  # fmt: skip


def test_bad_rows_of_parquet(fake, tmp_path):
    texts = pa.array([b"good", None, b"bad \xff", b"ab\xed\xa0\x80", "caf\u00e9".encode()], pa.binary()).view(
        pa.string()
    )
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet, row 1: 'text' is null"):
        fake([tmp_path / "a.parquet"], tmp_path / "out")
    fake([tmp_path / "a.parquet"], tmp_path / "out", on_error="skip")
    assert [row[1] for row in read_output(tmp_path / "out")] == [0, 4]
    assert np.array_equal(read_output(tmp_path / "out")[1][3], fake_embedding("caf\u00e9"))
    reasons = [reason for _, _, reason in read_skipped(tmp_path / "out")]
    assert reasons == ["'text' is null", "not UTF-8 (byte 4 of the text)", "not UTF-8 (byte 2 of the text)"]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_every_string_type_of_parquet(fake, tmp_path, kind):
    table = pa.table(
        {"text": pa.array(["one", "two", "one"]).cast(kind), "id": pa.array([1, 2, 2**64 - 1], pa.uint64())}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    fake([tmp_path / "a.parquet"], tmp_path / "out", id_column="id")
    assert [row[2] for row in read_output(tmp_path / "out")] == ["1", "2", str(2**64 - 1)]


def test_columns_are_checked_before_anything_is_written(fake, tmp_path):
    table = pa.table({"text": pa.array([b"x"], pa.binary()), "words": ["x"], "score": [0.5]})
    pq.write_table(table, tmp_path / "a.parquet")
    write_records(tmp_path / "b.jsonl", [{"words": "x", "n": 1}] * 3)
    write_lines(tmp_path / "c.txt", [b"x"])
    cases = [
        ("a.parquet", {}, "column 'text' holds binary, strings are needed"),
        ("a.parquet", {"text_column": "title"}, "no column 'title'; it has: text, words, score"),
        ("a.parquet", {"text_column": "words", "id_column": "score"}, "'score' holds double, strings or integers"),
        ("b.jsonl", {}, "has no column 'text'; its first rows have: n, words"),
        ("b.jsonl", {"text_column": "words", "id_column": "id"}, "has no column 'id'"),
        ("c.txt", {"id_column": "id"}, "is plain text and has no column 'id'"),
    ]
    for name, options, message in cases:
        with pytest.raises(ValueError, match=message):
            fake([tmp_path / name], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_files_are_checked_before_anything_is_written(fake, tmp_path):
    good = write_lines(tmp_path / "a.txt", [b"x"])
    other = write_lines(tmp_path / "a.csv", [b"x"])
    no_parquet = write_lines(tmp_path / "b.parquet", [b"x"])
    for files, error, message in [
        ([], ValueError, "at least one file"),
        ([tmp_path], ValueError, "is a folder"),
        ([good, tmp_path / "none.txt"], FileNotFoundError, "none.txt does not exist"),
        ([other], ValueError, "no known ending"),
        ([good, tmp_path / "model" / ".." / "a.txt"], ValueError, "given twice"),
        ([no_parquet], OSError, "b.parquet is not a Parquet file that can be read"),
    ]:
        with pytest.raises(error, match=message):
            fake(files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_files_stop_with_their_finished_shards_valid(fake, tmp_path):
    path = tmp_path / "a.parquet"
    texts = [f"text {i} {'x' * 50}" for i in range(40)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=10, compression="none", write_page_checksum=True)
    data = bytearray(path.read_bytes())
    at = data.index(b"text 25")
    data[at : at + 7] = b"TEXT 99"
    path.write_bytes(data)
    with pytest.raises(OSError, match=r"a\.parquet, row 20: row group 2 \(rows 20 to 29\) cannot be read"):
        fake([path], tmp_path / "out", on_error="skip")
    assert [row[1] for row in read_output(tmp_path / "out")] == list(range(20))
    packed = write_lines(tmp_path / "b.txt.gz", [json.dumps(texts).encode() * 20] * 30)
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(OSError, match=r"b\.txt\.gz, row \d+ \(line \d+\): the file cannot be read on"):
        fake([packed], tmp_path / "out2", on_error="skip")
    assert len(read_output(tmp_path / "out2")) % 2 == 0 and len(read_output(tmp_path / "out2")) > 0


def test_the_command_says_it_in_one_line(tmp_path):
    path = write_lines(tmp_path / "a.txt", [b"x"])

    def run(*arguments):
        result = CliRunner().invoke(app, ["encode", *map(str, arguments), "--out", str(tmp_path / "out")])
        assert result.exit_code == 1, result.output
        return " ".join(result.output.split())

    assert "lam: " in run(path, "--model", tmp_path / "none") and "neither a folder" in run(path, "--model", "none")
    assert "truncate_dim is 0" in run(path, "--truncate-dim", 0)
    assert "workers is 2; it needs the ray engine" in run(path, "--workers", 2)
    assert "does not exist" in run(tmp_path / "b.txt")
