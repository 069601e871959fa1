"""Questions about long documents, by their best chunk: late chunks and chunks read alone.

    python benchmarks/late_chunk_questions.py LAM-base-v1 --baseline all-MiniLM-L6-v2 --data DIR

The documents and questions of `lam evaluate --only retrieval` (L-Eval, DIR/longdoc/leval). A document's score is that
of its nearest chunk, of 510 tokens as there. nDCG@10 with 95 % intervals, and the paired difference of each way to the
baseline's best chunk.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from lam_transformers.encoding import late_chunks
from lam_transformers.evaluation.data import Data
from lam_transformers.evaluation.models import MeasuredModel, best_chunk, load_encoder
from lam_transformers.evaluation.part import Context, Settings
from lam_transformers.evaluation.parts.retrieval import leval_set
from lam_transformers.io.results import write_result
from lam_transformers.scoring.retrieval import ndcg
from lam_transformers.scoring.statistics import bootstrap_mean

SIZE = 510


def late(model: MeasuredModel, documents: list[str]) -> list[np.ndarray]:
    """For each document the embeddings [chunks, D] of its late chunks."""
    return [np.stack([chunk.embedding for chunk in late_chunks(model.model, text, SIZE)]) for text in documents]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--baseline", default="all-MiniLM-L6-v2")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/late_chunk_questions.json"))
    arguments = parser.parse_args()
    model = load_encoder(arguments.model)
    baseline = load_encoder(arguments.baseline)
    documents, queries, relevant = leval_set(Context(model, [], Data(arguments.data), Settings()))
    asked = model.encode(queries)
    asked_of_baseline = baseline.encode(queries)
    ways = {
        f"{model.name}, best late chunk": lambda: best_chunk(asked, late(model, documents)),
        f"{model.name}, best chunk alone": lambda: best_chunk(asked, model.encode_chunks(documents, SIZE)),
        f"{baseline.name}, best chunk alone": lambda: best_chunk(
            asked_of_baseline, baseline.encode_chunks(documents, SIZE)
        ),
    }
    gains = {}
    for name, scores in ways.items():
        gains[name] = ndcg(scores(), relevant)
        print(name, round(float(gains[name].mean()), 4), flush=True)
    reference = gains[f"{baseline.name}, best chunk alone"]
    rows: list[dict[str, Any]] = [
        {"way": name, "ndcg@10": bootstrap_mean(values), "difference": bootstrap_mean(values - reference)}
        for name, values in gains.items()
    ]
    counts = {"documents": len(documents), "queries": len(queries), "chunk_tokens": SIZE}
    write_result(arguments.out, counts | {"rows": rows})


if __name__ == "__main__":
    main()
