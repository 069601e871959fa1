"""What the tests of bulk encoding share: inputs, a model that is none, and the rows of an output folder."""

import gzip
import json
import lzma
import zlib
from pathlib import Path

import numpy as np
import torch

from lam_transformers.bulk.block_encoder import Encoded
from lam_transformers.checkpoints.export import export_model

WIDTH = 8


def save_for_encoding(model, tokenizer, folder: Path) -> Path:
    """A folder that SentenceTransformer loads."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    export_model(folder, folder, torch.float32)
    return folder


def write_lines(path: Path, lines: list[bytes]) -> Path:
    data = b"".join(line + b"\n" for line in lines)
    data = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)(data)
    path.write_bytes(data)
    return path


def write_records(path: Path, records: list) -> Path:
    return write_lines(path, [json.dumps(r).encode() for r in records])


def sentences(count: int) -> list[str]:
    """Different texts of different lengths."""
    words = ("the", "man", "woman", "dog", "cat", "child", "plays", "runs", "house", "street", "music", "guitar")
    return [" ".join([f"{i}", *(words[(i * 7 + k) % len(words)] for k in range(1 + i % 9))]) for i in range(count)]


def fake_embedding(text: str) -> np.ndarray:
    """Numbers [WIDTH] that depend on the text alone."""
    return np.random.default_rng(zlib.crc32(text.encode())).standard_normal(WIDTH).astype(np.float32)


def fake_engine(model, options, blocks):
    """Takes the place of `encode_locally`."""
    for block in blocks:
        good = [row.text for row in block.rows if row.error is None]
        embeddings = np.stack([fake_embedding(text) for text in good]) if good else None
        yield Encoded([row._replace(text=None) for row in block.rows], embeddings, len(good), block.bytes_read)


class RecordedProgress:
    """A `Progress` of one task that keeps what it is told; `stop` is called with the number of times that was."""

    def __init__(self, stop=lambda count: None):
        self.advanced, self.notes, self.stop = [], [], stop

    def task(self, what, total=None):
        self.total = total
        return self

    def advance(self, count=1, note=None):
        self.advanced.append(count)
        self.notes.append(note)
        self.stop(len(self.advanced))


def read_output(folder: Path) -> list[tuple]:
    """(file, row, id or None, embedding) of every row of the shards that the manifest calls finished, in order."""
    import pyarrow.parquet as pq

    rows = []
    for shard in json.loads((folder / "manifest.json").read_text())["shards"]:
        for name in shard["files"]:
            if name.endswith(".parquet"):
                for r in pq.read_table(folder / name).to_pylist():
                    rows.append((r["file"], r["row"], r.get("id"), np.array(r["embedding"])))
            elif name.endswith(".npy"):
                lines = (folder / name.replace(".npy", ".rows.jsonl")).read_text().splitlines()
                for r, x in zip(map(json.loads, lines), np.load(folder / name), strict=True):
                    rows.append((r["file"], r["row"], r.get("id"), x))
    return rows


def read_skipped(folder: Path) -> list[tuple]:
    """(file, row, reason) of every skipped row."""
    path = folder / "skipped.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(r["file"], r["row"], r["reason"]) for r in map(json.loads, lines)]


def assert_same_output(got: Path, want: Path, bound: float = 0.0) -> None:
    """The same rows and skipped rows in the same order, the embeddings within `bound`."""
    left, right = read_output(got), read_output(want)
    assert [row[:3] for row in left] == [row[:3] for row in right]
    for (*place, x), (*_, y) in zip(left, right, strict=True):
        assert np.abs(x - y).max() <= bound, place
    assert read_skipped(got) == read_skipped(want)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
