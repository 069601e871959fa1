"""LAM without PyTorch: texts of any length to embeddings, by onnxruntime.

pip install onnxruntime tokenizers numpy

from lam_onnx import Encoder
encoder = Encoder("FOLDER")                       # of `lam export-onnx`; this file lies in it
embeddings = encoder.encode(["a text", "another"])  # [N, D] float32, rows of length one
book = encoder.encode_long(open("book.txt"))        # [D], in constant memory
encoder.similarity(embeddings, book)                # [N]
"""

import json
import os
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

PIECE = 16_384  # characters tokenised at once
LONGEST_WORD = 1_000_000  # characters without a space that are tokenised at once
LONG_WORD = re.compile("([0-9A-Za-z]{1024})[0-9A-Za-z]+")


class Encoder:
    """Embeds texts with a LAM in an exported folder. Texts are never truncated.

    folder: what `lam export-onnx` wrote. threads: of onnxruntime; None lets it choose. budget: tokens that go through
    the model at once; it decides the memory needed and changes no result.
    """

    def __init__(self, folder: str | os.PathLike, threads: int | None = None, budget: int = 1024):
        self.folder = Path(folder)
        for name in ("lam_onnx.json", "tokenizer.json", "model.onnx", "model_stream.onnx"):
            if not (self.folder / name).is_file():
                raise FileNotFoundError(f"{self.folder} has no {name}; write the folder again with `lam export-onnx`.")
        self.config = json.loads((self.folder / "lam_onnx.json").read_text(encoding="utf-8"))
        needed = self.config["onnxruntime"]
        if _numbers(onnxruntime.__version__) < _numbers(needed):
            raise ImportError(f"This model needs onnxruntime {needed} or newer, found {onnxruntime.__version__}.")
        self.budget = max(budget, 1)
        self.cut = re.compile(self.config["cut"]) if self.config["cut"] else None
        self.tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = threads or 0
        self.options.enable_mem_pattern = False  # plans for each length would take more memory than they save
        self.sessions: dict[str, onnxruntime.InferenceSession] = {}

    def session(self, name: str) -> onnxruntime.InferenceSession:
        """The graph in that file, loaded when it is first needed."""
        if name not in self.sessions:
            path = str(self.folder / name)
            session = onnxruntime.InferenceSession(path, self.options, providers=["CPUExecutionProvider"])
            found = session.get_modelmeta().custom_metadata_map.get("lam_fingerprint")
            if found != self.config["fingerprint"]:
                raise ValueError(f"{path} is not the model that lam_onnx.json describes; export the folder again.")
            self.sessions[name] = session
        return self.sessions[name]

    def encode(self, texts: str | Iterable[str]) -> np.ndarray:
        """Embeddings [N, D] of texts, or [D] of one, float32 and of length one."""
        if isinstance(texts, str):
            return self.encode([texts])[0]
        texts = list(texts)
        result = np.zeros((len(texts), self.config["dimensions"]), np.float32)
        ids: dict[int, list[int]] = {}
        for i, text in enumerate(texts):
            tokens = self.tokens(text) if len(_checked(text)) <= PIECE else []
            whole = self.config["opening"] + tokens + self.config["closing"]
            if len(text) > PIECE or not 0 < len(whole) <= self.config["segment"]:
                result[i] = self.encode_long(text)
            else:
                ids[i] = whole
        batches: list[list[int]] = []
        for i in sorted(ids, key=lambda i: len(ids[i])):
            if not batches or (len(batches[-1]) + 1) * len(ids[i]) > self.budget:
                batches.append([])
            batches[-1].append(i)
        for batch in batches:
            result[batch] = self._run([ids[i] for i in batch])
        return result

    def _run(self, rows: list[list[int]]) -> np.ndarray:
        padded = np.zeros((len(rows), max(map(len, rows))), np.int64)
        mask = np.zeros_like(padded)
        for i, row in enumerate(rows):
            padded[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return self.session("model.onnx").run(["sentence_embedding"], {"input_ids": padded, "attention_mask": mask})[0]

    def encode_long(self, text: str | Iterable[str]) -> np.ndarray:
        """Embedding [D] of a text of any length, or of pieces of one (such as an open file), in constant memory."""
        reading = self.open()
        for piece in [text] if isinstance(text, str) else text:
            reading.add(piece)
        return reading.embedding()

    def open(self, path: str | os.PathLike | None = None) -> "Reading":
        """A text that is read piece by piece; path: one that `Reading.save` wrote."""
        return Reading(self, path)

    @staticmethod
    def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Cosines of embeddings [N, D] or [D] with embeddings [M, D] or [D]."""
        return np.asarray(a) @ np.asarray(b).T

    def tokens(self, text: str) -> list[int]:
        """Token ids of a stretch of text, without special tokens."""
        text = self.shorten(text)
        if self.cut and len(text) > LONGEST_WORD:
            raise ValueError(f"{len(text):,} characters without a place to cut them, from {text[:40]!r}...")
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def shorten(self, text: str) -> str:
        """A text with the same tokens: a word of more than 100 letters is one unknown token, however long it is."""
        return LONG_WORD.sub(r"\1", text) if len(text) > PIECE and self.config["long_words_unknown"] else text


class Reading:
    """A text that is read piece by piece; its size does not depend on what was read. `Encoder.open` makes one."""

    def __init__(self, encoder: Encoder, path: str | os.PathLike | None = None):
        self.encoder = encoder
        self.state = {name: np.zeros(shape, np.float32) for name, shape in encoder.config["state"].items()}
        self.state["seen"] = np.zeros(1, np.int64)
        self.total = np.zeros(encoder.config["dimensions"])
        self.ids = list(encoder.config["opening"])  # not read yet
        self.text = ""  # not tokenised yet
        if path is not None:
            self._load(path)

    def add(self, piece: str) -> None:
        """Read on. Where pieces begin and end makes no difference."""
        for start in range(0, len(_checked(piece)), PIECE):
            self.text += piece[start : start + PIECE]
            cuts = self.encoder.cut if len(self.text) >= PIECE else None
            place = cuts.search(self.text[::-1]) if cuts else None
            if place:
                cut = len(self.text) - place.end()
                self._read(self.encoder.tokens(self.text[:cut]))
                self.text = self.text[cut:]
            self.text = self.encoder.shorten(self.text)

    def embedding(self) -> np.ndarray:
        """The embedding [D] of all that was read so far; reading may go on."""
        kept = self.state, self.total.copy(), self.ids
        self._read(self.encoder.tokens(self.text) + self.encoder.config["closing"])
        total = self.total + (self._run(self.ids) if self.ids else 0)
        self.state, self.total, self.ids = kept
        return (total / max(np.linalg.norm(total), 1e-12)).astype(np.float32)

    def _read(self, ids: list[int]) -> None:
        size = self.encoder.config["segment"]
        self.ids = self.ids + ids
        while len(self.ids) > size:
            self.total += self._run(self.ids[:size])
            self.ids = self.ids[size:]

    def _run(self, ids: list[int]) -> np.ndarray:
        row = np.array([ids], np.int64)
        given = {"input_ids": row, "attention_mask": np.ones_like(row), **self.state}
        names = ["token_sum", *(f"next_{name}" for name in self.state)]
        total, *after = self.encoder.session("model_stream.onnx").run(names, given)
        self.state = dict(zip(self.state, after, strict=True))
        return total[0]

    def save(self, path: str | os.PathLike) -> None:
        """Write what was read so far to a file (.npz), for `Encoder.open`."""
        about = json.dumps({"fingerprint": self.encoder.config["fingerprint"], "ids": self.ids, "text": self.text})
        with open(path, "wb") as file:
            memory, conv, seen = (self.state[name] for name in ("memory", "conv", "seen"))
            np.savez(file, about=np.array(about), total=self.total, memory=memory, conv=conv, seen=seen)

    def _load(self, path: str | os.PathLike) -> None:
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                self.total = file["total"]
                state = {name: file[name] for name in self.state}
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is damaged or holds no reading of a LAM: {error}") from error
        if about["fingerprint"] != self.encoder.config["fingerprint"]:
            raise ValueError(f"{path} was written by another model; read the text again with this one.")
        self.state, self.ids, self.text = state, about["ids"], about["text"]


def _checked(text: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"LAM embeds strings, got {type(text).__name__}.")
    text.encode()  # a lone surrogate is no character: UnicodeEncodeError, which is a ValueError
    return text


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:2]]
