"""Scores of one set of near pairs by two kinds of teachers, as files to fine-tune with.

    python benchmarks/label_near_pairs.py --pool runs/pool --teachers runs/pool-teachers \
        --bi-encoder runs/teacher/best --out runs/labels

The pairs are drawn from near.pt of `lam_transformers.training.at_scale.teachers`, which has the scores of its
cross-encoder. The bi-encoder, such as the best of `lam train finetune` by the recipe stage3_teacher.yaml, scores the
same pairs by the cosine of their embeddings. OUT/cross-encoder.jsonl and OUT/bi-encoder.jsonl differ only in the score.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from transformers import AutoTokenizer

from lam_transformers.io.loading import load_sentence_transformer, locate_model
from lam_transformers.scoring.sts import similarities
from lam_transformers.training.at_scale.pool_teacher import BASE


def pool_texts(pool: Path, rows: np.ndarray, base: str) -> list[str]:
    """Texts `rows` of a pool, from their word pieces."""
    ids = np.load(pool / "ids.npy", mmap_mode="r")
    ends = np.load(pool / "lengths.npy").astype(np.int64).cumsum()
    starts = np.concatenate([[0], ends[:-1]])
    tokenizer = AutoTokenizer.from_pretrained(locate_model(base))
    return [tokenizer.decode(ids[starts[row] : ends[row]]) for row in rows.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--teachers", type=Path, required=True, help="folder with near.pt")
    parser.add_argument("--bi-encoder", required=True, help="folder or Hub id")
    parser.add_argument("--base", default=BASE, help="whose tokenizer the pool was made with")
    parser.add_argument("--pairs", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    near = torch.load(arguments.teachers / "near.pt", weights_only=True)
    drawn = torch.randperm(len(near["score"]), generator=torch.Generator().manual_seed(arguments.seed))
    drawn = drawn[: arguments.pairs]
    texts = pool_texts(arguments.pool, torch.cat([near["i"][drawn], near["j"][drawn]]).numpy(), arguments.base)
    first, second = texts[: len(drawn)], texts[len(drawn) :]
    model = load_sentence_transformer(arguments.bi_encoder, dtype=torch.float32).eval()
    scores = {
        "cross-encoder": near["score"][drawn].double().numpy(),
        "bi-encoder": similarities(lambda texts: model.encode(texts, batch_size=64), first, second),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, values in scores.items():
        with (arguments.out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for pair in zip(first, second, values.clip(0, 1).tolist(), strict=True):
                file.write(json.dumps(dict(zip(("sentence1", "sentence2", "score"), pair, strict=True))) + "\n")
        print(f"{name}: mean {values.mean():.3f}, standard deviation {values.std():.3f}")
    agreement = stats.spearmanr(scores["cross-encoder"], scores["bi-encoder"]).statistic
    print(f"{len(drawn)} pairs; Spearman correlation of the two: {agreement:.3f}")


if __name__ == "__main__":
    main()
