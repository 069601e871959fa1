"""The output folder: numbered shards, a manifest that says which of them are finished, the skipped rows.

A shard is written under a temporary name. When it is complete and on the disk, its skipped rows are appended to
skipped.jsonl, the files get their names, and last of all the manifest is replaced. Whatever is interrupted before that
last step is done again by a resume: the manifest alone decides what is finished.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from ..io.atomic import atomic_file, to_disk
from .options import EncodeOptions
from .rows import InputFile, Row
from .write_npy import NpyShard
from .write_parquet import ParquetShard

MANIFEST = "manifest.json"
SKIPPED = "skipped.jsonl"
LOCK = ".lock"
# The folder is locked, so that one name is enough for what is not finished; a resume finds it by that name.
TEMPORARY = ".tmp"
ENDINGS = {"parquet": (".parquet",), "npy": (".npy", ".rows.jsonl")}
WRITERS: dict[str, type[ParquetShard] | type[NpyShard]] = {"parquet": ParquetShard, "npy": NpyShard}
FORMAT = "lam encode 1"
_NAME = re.compile(r"part-\d{5,}(" + "|".join(map(re.escape, sum(ENDINGS.values(), ()))) + ")")
_NUMBERS = ("rows", "skipped", "tokens")


class OutputFolder:
    """An output folder held by this process alone. Use as a context manager."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        identity: dict[str, Any],
        inputs: list[InputFile],
        options: EncodeOptions,
    ):
        """Start a new folder, or take up one that was started with the same `identity`.

        Args:
            folder: one that does not exist, is empty, or holds an earlier part of the same run.
            identity: {"model": ..., "options": ..., "inputs": ...}, as JSON.
            inputs: the input files.
            options: of the run.

        Raises:
            ValueError: if the folder holds something else, or a run with another identity (naming the difference), or
                is in use by another process; nothing in it has been touched then.
            OSError: if a finished shard is missing or has changed.
        """
        self.folder = Path(folder)
        self.inputs = inputs
        self.options = options
        self._inspect(identity)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / LOCK, timeout=0)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise ValueError(
                f"{self.folder} is in use by another run; wait for it or choose another folder."
            ) from error
        try:
            self.manifest = self._inspect(identity) or self._begin(identity)
            self._check_contents()
            self._remove_unfinished()
        except BaseException:
            self._lock.release()
            raise
        self._start_shard()

    def __enter__(self) -> "OutputFolder":
        return self

    def __exit__(self, *error: object) -> None:
        self._abandon()
        self._lock.release()

    @property
    def start(self) -> tuple[int, int]:
        """The first row that no finished shard covers: (file, number)."""
        return self.manifest["next"]["file"], self.manifest["next"]["row"]

    @property
    def complete(self) -> bool:
        """Whether all rows of the inputs are in finished shards."""
        return bool(self.manifest["complete"])

    @property
    def rows(self) -> int:
        """Rows in finished shards."""
        return sum(shard["rows"] for shard in self.manifest["shards"])

    @property
    def skipped(self) -> int:
        """Rows left out of finished shards."""
        return sum(shard["skipped"] for shard in self.manifest["shards"])

    def _inspect(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """The manifest to go on with, None for a folder to begin in; raises, having touched nothing, otherwise."""
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file; choose a folder.")
        names = {path.name for path in self.folder.iterdir()} if self.folder.exists() else set()
        if MANIFEST not in names:
            if others := sorted(names - {LOCK, MANIFEST + TEMPORARY}):
                some = ", ".join(others[:3])
                raise ValueError(f"{self.folder} holds something else ({some}); choose a new or an empty folder.")
            return None
        path = self.folder / MANIFEST
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} cannot be read ({error}); choose another folder.") from error
        if not isinstance(kept, dict) or kept.get("format") != FORMAT:
            raise ValueError(f"{path} is not a manifest of '{FORMAT}'; choose another folder.")
        if wrong := _malformed(kept):
            raise ValueError(f"{path} is damaged ({wrong}); choose another folder.")
        if difference := _difference(kept, identity):
            if not kept["shards"]:  # begun and left before anything was finished: nothing would be lost
                return None
            raise ValueError(f"{self.folder} was begun otherwise: {difference}. Use the same again, or another folder.")
        for shard in kept["shards"]:
            for name, size in shard["files"].items():
                shard_path = self.folder / name
                if not shard_path.exists() or shard_path.stat().st_size != size:
                    what = "has changed" if shard_path.exists() else "is missing"
                    raise OSError(f"{shard_path} {what} since it was finished; choose another folder to encode anew.")
        return kept

    def _check_contents(self) -> None:
        """Raise OSError if a finished shard or skipped.jsonl is not what it was, by its SHA-256."""
        for shard in self.manifest["shards"]:
            for name, expected in shard.get("sha256", {}).items():
                if _digest(self.folder / name).hexdigest() != expected:
                    raise OSError(
                        f"{self.folder / name} has changed since it was finished (its SHA-256 is another); choose "
                        "another folder to encode anew."
                    )
        path = self.folder / SKIPPED
        size = self.manifest["skipped_bytes"]
        self._skipped_digest = hashlib.sha256()
        if not size:
            return
        if not path.exists() or path.stat().st_size < size:
            what = "was cut" if path.exists() else "is missing"
            raise OSError(f"{path} {what} since its rows were skipped; choose another folder to encode anew.")
        self._skipped_digest = _digest(path, size)
        now = self._skipped_digest.hexdigest()
        if self.manifest.get("skipped_sha256", now) != now:
            raise OSError(f"{path} has changed since its rows were skipped; choose another folder to encode anew.")

    def _begin(self, identity: dict[str, Any]) -> dict[str, Any]:
        start = {"complete": False, "next": {"file": 0, "row": 0}, "skipped_bytes": 0, "shards": []}
        manifest = {"format": FORMAT, **identity, **start}
        self._write_manifest(manifest)
        return manifest

    def _remove_unfinished(self) -> None:
        """What an interrupted run left of the shard that comes next, whichever format it had."""
        for endings in ENDINGS.values():
            for ending in endings:
                name = self._stem + ending
                (self.folder / name).unlink(missing_ok=True)
                (self.folder / (name + TEMPORARY)).unlink(missing_ok=True)

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        with atomic_file(self.folder / MANIFEST, self.folder / (MANIFEST + TEMPORARY)) as temporary:
            temporary.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")

    def _start_shard(self) -> None:
        self._names = [self._stem + ending for ending in ENDINGS[self.options.format]]
        self._writer: ParquetShard | NpyShard | None = None
        self._seen = 0
        self._written = 0
        self._tokens = 0
        self._skipped: list[dict[str, Any]] = []
        self._last: Row | None = None

    @property
    def _stem(self) -> str:
        return f"part-{len(self.manifest['shards']):05d}"

    @property
    def _temporary(self) -> list[Path]:
        return [self.folder / (name + TEMPORARY) for name in self._names]

    def add(self, rows: list[Row], embeddings: np.ndarray | None, tokens: int) -> None:
        """Take the next rows, with the embeddings [rows without an error, D]; finish every shard that they fill.

        Args:
            rows: the rows of a block.
            embeddings: those of the rows without an error; None where there is no such row.
            tokens: of the block.

        Raises:
            ValueError: at a row with an error, unless such rows are to be skipped.
            OSError: if the shard cannot be written; the finished ones stay as they are.
        """
        while rows:
            count = self.options.shard_rows - self._seen
            part = rows[:count]
            rows = rows[count:]
            good = [row for row in part if row.error is None]
            self._note_errors(part)
            if good:
                assert embeddings is not None
                with self._guarded():
                    self._write(good, embeddings[: len(good)])
                embeddings = embeddings[len(good) :]
            self._seen += len(part)
            self._last = part[-1]
            self._tokens += tokens
            tokens = 0
            if self._seen == self.options.shard_rows:
                with self._guarded():
                    self._commit()

    def finish(self) -> None:
        """Finish the last shard; nothing more will come."""
        with self._guarded():
            self._commit(last=True)

    def _note_errors(self, rows: list[Row]) -> None:
        for row in rows:
            if row.error is None:
                continue
            file = self.inputs[row.file]
            if self.options.on_error == "stop":
                raise ValueError(
                    f"{file.place(row.number)}: {row.error}. Run again with --on-error skip to go on without such "
                    "rows, or mend the file and encode into a new folder."
                )
            self._skipped.append({"file": file.name, "row": row.number, "reason": row.error})

    def _write(self, rows: list[Row], embeddings: np.ndarray) -> None:
        if self._writer is None:
            with_ids = self.options.id_column is not None
            self._writer = WRITERS[self.options.format](self._temporary, self.inputs, with_ids)
        self._writer.add(rows, embeddings)
        self._written += len(rows)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Around what writes: say what was being done if the disk refuses, and leave no half of a file."""
        try:
            yield
        except OSError as error:
            self._abandon()
            message = (
                f"{self.folder / self._names[0]} cannot be written ({error.strerror or error}). The shards finished "
                f"before it ({len(self.manifest['shards'])}) are kept: mend the disk and run the same command again."
            )
            raise (OSError(message) if error.errno is None else OSError(error.errno, message)) from error

    def _abandon(self) -> None:
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None
            for path in self._temporary:
                path.unlink(missing_ok=True)

    def _commit(self, last: bool = False) -> None:
        """Make the present shard count: see the text at the head of this file."""
        manifest = {**self.manifest, "complete": last}
        if self._last is not None:
            files: dict[str, int] = {}
            hashes: dict[str, str] = {}
            if self._writer is not None:
                self._writer.close()
                for path, name in zip(self._temporary, self._names, strict=True):
                    to_disk(path)
                    files[name] = path.stat().st_size
                    hashes[name] = _digest(path).hexdigest()
            manifest["skipped_bytes"] = self._append_skipped()
            manifest["skipped_sha256"] = self._skipped_digest.hexdigest()
            for path, name in zip(self._temporary, self._names, strict=True):
                if name in files:
                    os.replace(path, self.folder / name)
            manifest["next"] = {"file": self._last.file, "row": self._last.number + 1}
            counts = {"rows": self._written, "skipped": len(self._skipped), "tokens": self._tokens}
            manifest["shards"] = [*self.manifest["shards"], {**counts, "files": files, "sha256": hashes}]
        self._write_manifest(manifest)
        self.manifest = manifest
        self._start_shard()

    def _append_skipped(self) -> int:
        """Size of skipped.jsonl with the rows skipped in this shard."""
        size = self.manifest["skipped_bytes"]
        path = self.folder / SKIPPED
        if not self._skipped and not path.exists():
            return size
        with path.open("r+b" if path.exists() else "wb") as file:
            if file.seek(0, os.SEEK_END) < size:  # to lengthen it would fill it with zeros
                raise OSError(f"{path} was cut while the run went on")
            # An interrupted run may have left rows of a shard that it did not finish.
            file.truncate(size)
            file.seek(size)
            added = "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in self._skipped).encode()
            file.write(added)
            file.flush()
            os.fsync(file.fileno())
            self._skipped_digest.update(added)
            return file.tell()


def _digest(path: Path, size: int | None = None) -> "hashlib._Hash":
    """SHA-256 of a file, or of its first `size` bytes."""
    digest = hashlib.sha256()
    left = path.stat().st_size if size is None else size
    with path.open("rb") as file:
        while left > 0 and (piece := file.read(min(left, 1 << 20))):
            digest.update(piece)
            left -= len(piece)
    return digest


def _malformed(kept: dict[str, Any]) -> str:
    """What is missing from a manifest or of a wrong type; "" if nothing is."""
    kinds: dict[str, type] = {
        "model": dict,
        "options": dict,
        "inputs": list,
        "complete": bool,
        "next": dict,
        "skipped_bytes": int,
        "shards": list,
    }
    for name, kind in kinds.items():
        if type(kept.get(name)) is not kind:
            return f"'{name}' is missing or no {kind.__name__}"
    parts: list[tuple[str, Any, dict[str, type]]] = [
        ("model", kept["model"], {"name": str, "fingerprint": str}),
        ("next", kept["next"], {"file": int, "row": int}),
        *((f"inputs[{i}]", x, {"file": str, "size": int}) for i, x in enumerate(kept["inputs"])),
        *((f"shards[{i}]", x, {**dict.fromkeys(_NUMBERS, int), "files": dict}) for i, x in enumerate(kept["shards"])),
    ]
    for part, content, wanted in parts:
        for name, kind in wanted.items():
            value: Any = content.get(name) if isinstance(content, dict) else None
            if type(value) is not kind or (isinstance(value, int) and value < 0):
                return f"'{name}' of {part} is missing or no {kind.__name__}"
    for i, shard in enumerate(kept["shards"]):
        hashes = shard.get("sha256", {})
        if not isinstance(hashes, dict) or not hashes.keys() <= shard["files"].keys():
            return f"'sha256' of shards[{i}] is not that of its files"
        for name, size in shard["files"].items():
            if not _NAME.fullmatch(name) or type(size) is not int:
                return f"'files' of shards[{i}] names {name[:60]!r}"
    if kept["skipped_bytes"] < 0 or kept["next"]["file"] > len(kept["inputs"]):
        return "'skipped_bytes' or 'next' is out of range"
    return ""


def _difference(kept: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The first difference between a manifest and the identity of this run, in words; "" if there is none."""
    if kept["model"]["fingerprint"] != wanted["model"]["fingerprint"]:
        return f"with the model {kept['model']['name']} as it was then, not with {wanted['model']['name']} as it is now"
    for name, value in wanted["options"].items():
        if kept["options"].get(name) != value:
            return f"with {name} {kept['options'].get(name)!r}, not {value!r}"
    for before, now in zip(kept["inputs"], wanted["inputs"], strict=False):
        if before["file"] != now["file"]:
            return f"with the input {before['file']} where {now['file']} is given now"
        if before != now:
            return f"with other contents of {now['file']} ({before['size']:,} bytes then, {now['size']:,} now)"
    if len(kept["inputs"]) != len(wanted["inputs"]):
        return f"with {len(kept['inputs'])} input files, not {len(wanted['inputs'])}"
    return ""
