"""Rows of all kinds of files: in blocks, from any start, and what is refused before anything is written."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lam_transformers.bulk.rows import open_inputs, read_blocks

from .bulk_helpers import write_lines, write_records


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


def test_columns_are_checked_before_anything_is_written(fake_pairs, tmp_path):
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
            fake_pairs([tmp_path / name], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_files_are_checked_before_anything_is_written(fake_pairs, tmp_path):
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
            fake_pairs(files, tmp_path / "out")
    assert not (tmp_path / "out").exists()
