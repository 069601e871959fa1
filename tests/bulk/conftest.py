"""A model, inputs of every kind, and bulk runs with an engine that needs no time."""

import json

import pytest

from lam_transformers.bulk import EncodeOptions, encode_files
from lam_transformers.bulk import run as run_module

from .bulk_helpers import fake_engine, save_for_encoding, sentences, write_lines, write_records


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
def fake_pairs(fake):
    """As `fake`, with two rows to a shard."""
    return lambda files, out, **options: fake(files, out, **{"shard_rows": 2} | options)


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
