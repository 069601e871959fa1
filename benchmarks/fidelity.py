"""How near a LAM is to the softmax model it was distilled from, by the position of a token.

    python benchmarks/fidelity.py runs/lam_base_v1/5-distill-5/best --name distill-5 --data DIR

DIR/pairs/arxiv_title_abstract.jsonl.gz; the first 128 tokens of its last abstracts that have 160. Compared: embeddings
(1 - cosine), last hidden states (squared error relative to the teacher's variance), the embedding with the teacher's
own states in place of the first tokens: what earlier tokens, which cannot see later ones, cost. float32.
"""

import argparse
import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoTokenizer

from lam_transformers import LAMModel
from lam_transformers.io.files import read_records
from lam_transformers.io.loading import locate_model
from lam_transformers.io.results import write_result

EDGES = (0, 1, 2, 4, 8, 16, 32, 64, 128)


def read_ids(path: Path, tokenizer, count: int, tokens: int) -> torch.Tensor:
    """Token ids [count, tokens] of the last abstracts that are long enough, cut, [CLS] and [SEP] included."""
    rows = []
    for record in reversed(list(read_records(path))):
        text = record["abstract"]
        ids = tokenizer(text if isinstance(text, str) else " ".join(text), verbose=False)["input_ids"]
        if len(ids) >= tokens + 32:
            rows.append([*ids[: tokens - 1], ids[-1]])
        if len(rows) == count:
            break
    return torch.tensor(rows)


@torch.inference_mode()
def compare(lam, teacher, ids: torch.Tensor) -> dict:
    ours, theirs = lam(ids).last_hidden_state, teacher(ids).last_hidden_state  # [B, T, D]
    error = (ours - theirs).square().sum(-1).mean(0) / theirs.var(dim=(0, 1)).sum()
    target = theirs.mean(1)

    def distance(states: torch.Tensor) -> float:
        return float(1 - F.cosine_similarity(states.mean(1), target).mean())

    return {
        "one_minus_cosine": distance(ours),
        "error_by_position": [
            {"from": a, "to": b - 1, "error": float(error[a:b].mean())} for a, b in itertools.pairwise(EDGES)
        ],
        "one_minus_cosine_with_first_tokens_of_teacher": {
            str(k): distance(torch.cat([theirs[:, :k], ours[:, k:]], 1)) for k in EDGES[1:-1]
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--name", help="what the result calls the model; default its folder's name")
    parser.add_argument("--teacher", default="all-MiniLM-L6-v2")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=120)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fidelity.json"))
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(locate_model(arguments.teacher))
    ids = read_ids(arguments.data / "pairs/arxiv_title_abstract.jsonl.gz", tokenizer, arguments.texts, EDGES[-1])
    lam = LAMModel.from_pretrained(arguments.model, dtype=torch.float32).eval()
    teacher = AutoModel.from_pretrained(locate_model(arguments.teacher), dtype=torch.float32).eval()
    found = {"model": arguments.name or Path(arguments.model).name, "texts": len(ids), **compare(lam, teacher, ids)}
    print(found)
    write_result(arguments.out, found)


if __name__ == "__main__":
    main()
