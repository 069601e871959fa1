"""One long document remembered and found: how fast it is read, in how much memory, and whether its facts come back.

    python benchmarks/memory_document.py --text books.jsonl.xz [--tokens 1000000] [--model LAM-base-v1]
        [--place memory.db | --place postgresql://...] [--out results.json]

The document is made of the texts of the file, one after the other, up to the number of tokens; FACTS are paragraphs of
their own in it, at even distances from its beginning to its end. Each is then asked for in other words. Told are, for
the default ranking, for vectors alone and for words alone, how many facts are the first paragraph and among the first
ten, and the place of each in its order. A million tokens take the time of `encode` for them: some ten minutes of one
core. When it was killed, the same command with the same --place goes on where it was.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from measuring import Told

from lam_transformers.io.files import read_records
from lam_transformers.io.results import write_result
from lam_transformers.memories import Memory, Ranking

# What is planted, and the question for it, which shares few words with it.
FACTS = [
    ("Marit keeps the spare key of the boathouse under the blue barrel.", "Where is the extra key to the boat shed?"),
    ("The choir rehearses in the old fire station every second Thursday.", "When does the singing group practise?"),
    ("Our dentist, Dr. Okafor, retired and moved to Lisbon.", "What happened to the person who looks after our teeth?"),
    ("The cat is allergic to chicken, so she only gets salmon.", "Which food must the pet not eat?"),
    ("Jonas broke his left wrist while skating on the lake.", "How did he injure his arm?"),
    ("The code of the garage door is 4417 since the break-in.", "Which number opens the place where the car is?"),
    ("Grandmother baked the wedding cake with hazelnuts instead of almonds.", "Which nuts were in the dessert?"),
    ("The night train to Narvik leaves from platform eleven.", "From which track do we travel north?"),
    ("Priya sold her violin to pay for the flight school.", "How did she afford to become a pilot?"),
    ("The well behind the chapel dried up in the summer of 1976.", "In which year was there no more water there?"),
    ("The accountant says that the receipts have to be kept for seven years.", "How long must the bills be stored?"),
    ("The library lends telescopes to anybody who has a card.", "Where can I borrow something to watch stars with?"),
]
WAYS = {"default": Ranking(), "vectors alone": Ranking(words=0.0), "words alone": Ranking(words=1.0)}


def document(texts: Path, tokens: int, count) -> tuple[str, list[int]]:
    """A text of about so many tokens, and where each of FACTS is in it."""
    paragraphs: list[str] = []
    total = 0
    for record in read_records(texts):
        for paragraph in record["text"].split("\n\n"):
            if total >= tokens:
                break
            if paragraph.strip():
                paragraphs.append(" ".join(paragraph.split()))
                total += count(paragraphs[-1])
    if total < tokens:
        raise ValueError(f"{texts} has {total:,} tokens, fewer than {tokens:,}.")
    after = np.linspace(0, len(paragraphs), len(FACTS)).round().astype(int).tolist()
    parts: list[str] = []
    for number in range(len(paragraphs) + 1):
        parts += [fact for place, (fact, _) in zip(after, FACTS, strict=True) if place == number]
        parts += paragraphs[number : number + 1]
    text = "\n\n".join(parts)
    return text, [text.index(fact) for fact, _ in FACTS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--model", default="LAM-base-v1")
    parser.add_argument("--place", default="")
    parser.add_argument("--out", type=Path, help="a file for the numbers")
    options = parser.parse_args()
    place = options.place or os.path.join(tempfile.mkdtemp(), "memory.db")

    numbers = Told()
    tell = numbers.tell
    with Memory(place, model=options.model, carried=False) as memory:
        tokenizer = memory.reader.parts.tokenizer
        text, places = document(options.text, options.tokens, lambda part: len(tokenizer.piece(part)))
        tell("characters", len(text))
        memory.add_document(
            "A short one, so that the model is loaded.\n\n" + text[:20_000], title="warm", user_id="other"
        )
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with memory.store.read() as transaction:
            done = transaction.rows("SELECT coalesce(sum(read_tokens), 0) FROM documents WHERE complete = 0")[0][0]
        start = time.perf_counter()
        record = memory.add_document(text, title="long", user_id="ada")
        seconds = time.perf_counter() - start
        steps = [event["tokens"] for event in memory.events(record.id) if event["kind"] == "document read"]
        tell("tokens", steps[-1])
        tell("tokens/s", (steps[-1] - int(done)) / seconds)
        tell(
            "memory above that of a short document, MB",
            (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        )
        tell("bytes", memory.stats()["bytes"])
        for name, ranking in WAYS.items():
            ranks = [
                rank_of(memory, question, place, ranking) for (_, question), place in zip(FACTS, places, strict=True)
            ]
            tell(f"{name}: ranks of the facts, first to last (0: not among the first 1,000)", ranks)
            tell(f"{name}: first", sum(rank == 1 for rank in ranks))
            tell(f"{name}: among ten", sum(1 <= rank <= 10 for rank in ranks))
    if options.out:
        write_result(options.out, numbers)


def rank_of(memory: Memory, question: str, place: int, ranking: Ranking) -> int:
    """The rank of the paragraph that holds a character; 0 if it is not among the first 1,000."""
    results = memory.search(question, user_id="ada", kinds=["paragraph"], top_k=1000, ranking=ranking)
    for rank, result in enumerate(results, 1):
        if result.memory.user_id == "ada" and result.memory.start <= place < result.memory.end:
            return rank
    return 0


if __name__ == "__main__":
    main()
