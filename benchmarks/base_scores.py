"""STS-B (dev and test), SICK-R (dev) and retrieval (Cranfield, CISI) of LAM and its teachers, in one harness.

    python benchmarks/base_scores.py LAM-base-v1 --baseline all-MiniLM-L6-v2 --data DIR

DIR holds sts/{stsb_dev,stsb_test,sickr_dev}.jsonl.gz and retrieval/{cranfield,cisi} in the BEIR layout. A model is a
folder or Hub id; texts go through transformers directly, mean-pooled, cosine similarity, float32. STS with 95 %
bootstrap intervals over the pairs, and with the leading 256, 128 and 64 dimensions. A `--sts-baseline` is scored on STS
only.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

import lam_transformers  # noqa: F401  (makes AutoModel know LAM)
from lam_transformers.io.loading import locate_model
from lam_transformers.io.results import write_result
from lam_transformers.scoring.pooling import embed_texts
from lam_transformers.scoring.retrieval import evaluate_retrieval
from lam_transformers.scoring.sts import evaluate_sts

RESAMPLES = 1000


def scores(name: str, data: Path, max_length: int | None, retrieval: bool = True) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(locate_model(name))
    model = AutoModel.from_pretrained(locate_model(name), dtype=torch.float32).eval()

    def encode(texts):
        return embed_texts(model, tokenizer, texts, max_length)

    result: dict = {"model": Path(name).name, "max_length": max_length}
    for task in ("stsb_dev", "stsb_test", "sickr_dev"):
        result[task] = evaluate_sts(encode, data / f"sts/{task}.jsonl.gz", (256, 128, 64), RESAMPLES)
    for task in ("cranfield", "cisi") if retrieval else ():
        result[task] = evaluate_retrieval(encode, data / "retrieval" / task)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--baseline", default="all-MiniLM-L6-v2")
    parser.add_argument("--sts-baseline", action="append", default=[], help="may be given several times")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/base_scores.json"))
    arguments = parser.parse_args()
    # 256 is what the configuration of all-MiniLM-L6-v2 cuts at; with 512, which its table of positions allows, it is
    # worse.
    runs = [(arguments.model, None, True), (arguments.baseline, 256, True)]
    runs += [(name, 512, False) for name in arguments.sts_baseline]
    rows = []
    for name, max_length, retrieval in runs:
        rows.append(scores(name, arguments.data, max_length, retrieval))
        print(rows[-1], flush=True)
    write_result(arguments.out, {"models": rows})


if __name__ == "__main__":
    main()
