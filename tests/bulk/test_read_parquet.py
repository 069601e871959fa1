"""Parquet: every type of string, rows that are no text, damaged files."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from .bulk_helpers import fake_embedding, read_output, read_skipped


def test_bad_rows_of_parquet(fake_pairs, tmp_path):
    texts = pa.array([b"good", None, b"bad \xff", b"ab\xed\xa0\x80", "caf\u00e9".encode()], pa.binary()).view(
        pa.string()
    )
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet, row 1: 'text' is null"):
        fake_pairs([tmp_path / "a.parquet"], tmp_path / "out")
    fake_pairs([tmp_path / "a.parquet"], tmp_path / "out", on_error="skip")
    assert [row[1] for row in read_output(tmp_path / "out")] == [0, 4]
    assert np.array_equal(read_output(tmp_path / "out")[1][3], fake_embedding("caf\u00e9"))
    reasons = [reason for _, _, reason in read_skipped(tmp_path / "out")]
    assert reasons == ["'text' is null", "not UTF-8 (byte 4 of the text)", "not UTF-8 (byte 2 of the text)"]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_every_string_type_of_parquet(fake_pairs, tmp_path, kind):
    table = pa.table(
        {"text": pa.array(["one", "two", "one"]).cast(kind), "id": pa.array([1, 2, 2**64 - 1], pa.uint64())}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    fake_pairs([tmp_path / "a.parquet"], tmp_path / "out", id_column="id")
    assert [row[2] for row in read_output(tmp_path / "out")] == ["1", "2", str(2**64 - 1)]


def test_a_damaged_file_stops_with_its_finished_shards_valid(fake_pairs, tmp_path):
    path = tmp_path / "a.parquet"
    texts = [f"text {i} {'x' * 50}" for i in range(40)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=10, compression="none", write_page_checksum=True)
    data = bytearray(path.read_bytes())
    at = data.index(b"text 25")
    data[at : at + 7] = b"TEXT 99"
    path.write_bytes(data)
    with pytest.raises(OSError, match=r"a\.parquet, row 20: row group 2 \(rows 20 to 29\) cannot be read"):
        fake_pairs([path], tmp_path / "out", on_error="skip")
    assert [row[1] for row in read_output(tmp_path / "out")] == list(range(20))
