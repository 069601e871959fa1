"""Passages of books: is the nearest other passage from the same book?

    python benchmarks/long_passages.py LAM-base-v1 --baseline all-MiniLM-L6-v2 --data DIR

DIR/longdoc/books.jsonl.xz has records with _id and text. Of the books that training leaves out (the second half by
_id), 200 passages of 4,096 tokens, at most 12 a book, evenly spaced and without overlap. Compared: the model on whole
passages, the baseline on their first 512 tokens, and the baseline's mean over chunks of 256 tokens; also the model in
these two ways. Cosine similarity, float32.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from lam_transformers import LAMEncoder
from lam_transformers.io.files import read_records
from lam_transformers.io.loading import locate_model
from lam_transformers.io.results import write_result
from lam_transformers.training.longtext import nearest_of_same_source, training_half


def held_out_passages(path: Path, tokenizer, tokens: int, count: int, each: int) -> tuple[list[list[str]], np.ndarray]:
    """Passages as lists of chunks of 254 tokens (256 with the special ones), and the number of the book of each."""
    books = {str(record["_id"]): record["text"] for record in read_records(path)}
    kept = sorted(set(books) - set(training_half(list(books))))
    passages, labels = [], []
    for label, book in enumerate(kept):
        spans = tokenizer(books[book], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = spans["offset_mapping"]
        room = len(offsets) // tokens
        for i in np.unique(np.linspace(0, room - 1, min(each, room)).astype(int)):
            cuts = [*range(i * tokens, (i + 1) * tokens, 254), (i + 1) * tokens]
            passages.append([books[book][offsets[a][0] : offsets[b - 1][1]] for a, b in itertools.pairwise(cuts)])
            labels.append(label)
    # Every book keeps its share when there are more than are wanted.
    chosen = np.unique(np.linspace(0, len(passages) - 1, min(count, len(passages))).astype(int))
    return [passages[i] for i in chosen], np.array(labels)[chosen]


def accuracies(
    name: str, encoder: SentenceTransformer, passages: list[list[str]], labels: np.ndarray, whole: bool
) -> dict:
    texts = [" ".join(chunks) for chunks in passages]
    result: dict = {"model": name}
    if whole:
        result["whole"] = nearest_of_same_source(encoder.encode(texts, batch_size=4), labels)
    longest, encoder.max_seq_length = encoder.max_seq_length, 512
    result["first 512 tokens"] = nearest_of_same_source(encoder.encode(texts, batch_size=16), labels)
    encoder.max_seq_length = longest
    chunks = encoder.encode([chunk for passage in passages for chunk in passage], batch_size=32)
    parts = np.split(chunks, np.cumsum([len(passage) for passage in passages])[:-1])
    result["mean of chunks"] = nearest_of_same_source(np.stack([part.mean(0) for part in parts]), labels)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--baseline", default="all-MiniLM-L6-v2")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--passages", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/long_passages.json"))
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(locate_model(arguments.baseline))
    books = arguments.data / "longdoc/books.jsonl.xz"
    passages, labels = held_out_passages(books, tokenizer, arguments.tokens, arguments.passages, 12)
    print(f"{len(passages)} passages of {len(set(labels))} books", flush=True)
    rows = []
    for name, encoder, whole in (
        (arguments.model, LAMEncoder(arguments.model).model, True),
        (arguments.baseline, SentenceTransformer(locate_model(arguments.baseline)), False),
    ):
        rows.append(accuracies(Path(name).name, encoder, passages, labels, whole))
        print(rows[-1], flush=True)
    write_result(arguments.out, {"tokens": arguments.tokens, "passages": len(passages), "accuracy": rows})


if __name__ == "__main__":
    main()
