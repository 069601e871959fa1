"""5,000 sentences through SentenceTransformer.encode: LAM's own module (packed) against stock modules (padded).

    python benchmarks/packed_sentences.py LAM-base-v1 --data DIR

The same weights, exported with and without `--stock`, in one process, alternating; the sentences are the first 5,000
different ones of the STS-B dev and test pairs in DIR/sts.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from measuring import natural_sentences
from sentence_transformers import SentenceTransformer

from lam_transformers.checkpoints.export import export_model
from lam_transformers.io.results import write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/packed_sentences.json"))
    arguments = parser.parse_args()
    sentences = natural_sentences(arguments.data)
    with tempfile.TemporaryDirectory() as folder:
        export_model(arguments.model, folder, torch.float32, stock=True)
        stock = SentenceTransformer(folder, trust_remote_code=True)
        packed = SentenceTransformer(arguments.model, trust_remote_code=True)
        difference = abs(packed.encode(sentences[:500]) - stock.encode(sentences[:500])).max()
        rows = []
        for _ in range(arguments.rounds):
            seconds = {}
            for name, model in (("packed", packed), ("stock", stock)):
                began = time.perf_counter()
                model.encode(sentences)
                seconds[name] = time.perf_counter() - began
            rows.append({**{n: round(x, 3) for n, x in seconds.items()}, "ratio": seconds["stock"] / seconds["packed"]})
            print(rows[-1], flush=True)
    ratios = [row["ratio"] for row in rows]
    summary = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    numbers = {"sentences": len(sentences), "batch_size": 32, "largest_difference": float(difference)}
    write_result(arguments.out, {**numbers, "seconds": rows, "speed_packed_over_stock": summary})
    print(summary)


if __name__ == "__main__":
    main()
