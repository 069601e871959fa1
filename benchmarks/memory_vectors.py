"""Vectors of remembered conversations, made once and kept: what `memory_ranking.py` tries its rankings on.

    python benchmarks/memory_vectors.py --data beam_100K.jsonl.gz --cache DIR [--conversations 5]

For each conversation: every message embedded alone (`isolated`), its tokens pooled in blocks of 32 (sums, so that
passages of any length can be made of them), the same with the whole conversation before it (`carried`) or the last four
turns (`recent`, with --recent), all-MiniLM-L6-v2's vector of the message (cut at its 256 tokens) and of its passages of
128 tokens, and the questions.
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import torch

from lam_transformers.encoding import LAMEncoder
from lam_transformers.encoding.pipeline import Pipeline
from lam_transformers.evaluation.conversations import read_conversations
from lam_transformers.io.loading import locate_model
from lam_transformers.memories.reading import _token_states

BLOCK = 32


def blocks(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Token states [T, D] -> sums [blocks, D] of 32 tokens each, and how many tokens are in each."""
    starts = np.arange(0, len(states), BLOCK)
    sums = np.add.reduceat(states.astype(np.float64), starts, axis=0) if len(states) else states
    return sums.astype(np.float32), np.diff([*starts, len(states)])


@torch.inference_mode()
def token_states(parts: Pipeline, text: str) -> tuple[np.ndarray, np.ndarray]:
    """States [T, D] of all tokens, special ones included, and their characters [T, 2]."""
    pieces = list(_token_states(parts, text))
    return torch.cat([states for states, _ in pieces]).numpy(), np.concatenate([offsets for _, offsets in pieces])


@torch.inference_mode()
def in_one_pass(parts: Pipeline, texts: list[str], last: bool = False):
    """Blocks of each text (of the last alone, if asked) when they are read one after the other in one pass."""
    states, offsets = token_states(parts, "\n\n".join(texts))
    ends = list(itertools.accumulate(len(text) + 2 for text in texts))
    owner = np.where(offsets[:, 1] > 0, np.searchsorted(ends, offsets[:, 0], side="right"), -1)
    chosen = [len(texts) - 1] if last else range(len(texts))
    return [blocks(states[owner == i]) for i in chosen]


def packed(parts: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    return {
        "sums": np.concatenate([sums for sums, _ in parts]).astype(np.float16),
        "tokens": np.concatenate([tokens for _, tokens in parts]),
        "blocks": np.array([len(tokens) for _, tokens in parts]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--model", default="LAM-base-v1")
    parser.add_argument("--conversations", type=int, default=None)
    parser.add_argument("--recent", action="store_true")
    parser.add_argument("--mini", action="store_true", help="all-MiniLM-L6-v2 as well")
    options = parser.parse_args()
    encoder = LAMEncoder(options.model)
    parts = Pipeline(encoder)
    mini = None
    options.cache.mkdir(parents=True, exist_ok=True)
    stem = options.data.name.split(".")[0]
    for number, one in enumerate(itertools.islice(read_conversations(options.data), options.conversations)):
        texts = one.texts
        questions = [question.text for question in one.questions]

        def make(name, build, number=number):
            path = options.cache / f"{stem}-{number}-{name}.npz"
            if not path.exists():
                temporary = path.with_suffix(".tmp.npz")
                np.savez(temporary, **build())
                temporary.rename(path)
                print(json.dumps({"wrote": path.name}), flush=True)

        def lam_alone(texts=texts):
            alone = []
            isolated = []
            for text in texts:
                states, offsets = token_states(parts, text)
                isolated.append(states.mean(0) / np.linalg.norm(states.mean(0)))
                alone.append(blocks(states[offsets[:, 1] > 0]))
            return packed(alone) | {"isolated": np.stack(isolated)}

        def recent(texts=texts):
            return packed([in_one_pass(parts, texts[max(i - 4, 0) : i + 1], last=True)[0] for i in range(len(texts))])

        def minilm(texts=texts, questions=questions):
            nonlocal mini
            if mini is None:
                from sentence_transformers import SentenceTransformer

                mini = SentenceTransformer(locate_model("all-MiniLM-L6-v2"))
            passages, owners = [], []
            for owner, text in enumerate(texts):
                places = mini.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
                for start in range(0, max(len(places), 1), 126):
                    inside = places[start : start + 126] or [(0, len(text))]
                    passages.append(text[inside[0][0] : inside[-1][1]])
                    owners.append(owner)
            return {
                "isolated": mini.encode(texts), "questions": mini.encode(questions),
                "passages": mini.encode(passages), "owners": np.array(owners),
            }  # fmt: skip

        if options.recent:
            make("recent", recent)
            continue
        if options.mini:
            make("minilm", minilm)
            continue
        make("questions", lambda questions=questions: {"questions": encoder.encode(questions)})
        make("alone", lam_alone)
        make("carried", lambda texts=texts: packed(in_one_pass(parts, texts)))


if __name__ == "__main__":
    main()
