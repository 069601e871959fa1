"""One model fine-tuned in several ways by as many updates: dev scores of the start and of the last weights of each.

    python benchmarks/compare_finetuning.py START VARIANTS.yaml --data DIR --out FILE.json

VARIANTS.yaml: `common`, settings of a `FinetuneConfig`; `variants`, by name the settings in which each differs;
`seeds`. Paths in it start from the current folder. Rows that share a sentence with an evaluation set are left out
(evaluation_files.txt of the recipes). Nothing is selected: what is scored is what the last update left. STS-B dev and
SICK-R dev with 95 % bootstrap intervals over the pairs; Cranfield and CISI with --retrieval.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from lam_transformers.io.results import write_result
from lam_transformers.scoring.retrieval import evaluate_retrieval
from lam_transformers.scoring.sts import evaluate_sts
from lam_transformers.training.data import read_file_list
from lam_transformers.training.finetune import FinetuneConfig, Finetuner, load_student
from lam_transformers.training.recipe import RECIPES, build, read_yaml

RESAMPLES = 1000


def dev_scores(run: Finetuner, data: Path, retrieval: bool) -> dict[str, Any]:
    """Scores of the run's model as it is."""
    encoder = run.encoder.eval()

    def encode(texts):
        return encoder.encode(list(texts), batch_size=64, show_progress_bar=False)

    scores: dict[str, Any] = {
        name: evaluate_sts(encode, data / f"sts/{name}.jsonl.gz", (128,), RESAMPLES)
        for name in ("stsb_dev", "sickr_dev")
    }
    for name in ("cranfield", "cisi") if retrieval else ():
        scores[name] = evaluate_retrieval(encode, data / "retrieval" / name)
    return scores


def finetuned(
    arguments: argparse.Namespace, name: str, config: FinetuneConfig, folder: Path, score_start: bool
) -> list[dict[str, Any]]:
    """The scores of a variant, after those of the start if these are asked for."""
    student, tokenizer = load_student(arguments.start)
    torch.manual_seed(config.seed)
    dev_file = arguments.data / "sts/stsb_dev.jsonl.gz"
    run = Finetuner(
        student=student,
        tokenizer=tokenizer,
        config=config,
        folder=folder,
        dev_file=dev_file,
        exclude=[arguments.data / path for path in read_file_list(RECIPES / "evaluation_files.txt")],
    )
    rows: list[dict[str, Any]] = []
    if score_start:
        rows.append({"variant": "start", **dev_scores(run, arguments.data, arguments.retrieval)})
        print(rows[-1], flush=True)
    progress = run.run(evaluate_every=config.steps, checkpoint_every=config.steps)
    counts = {
        "rows": {name: len(data) for name, data in run.datasets.items()},
        "updates": progress.step,
        "tokens": progress.tokens,
        "seconds": round(progress.seconds),
    }
    scores = dev_scores(run, arguments.data, arguments.retrieval)
    rows.append({"variant": name, "seed": config.seed, **counts, **scores})
    print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("start")
    parser.add_argument("variants", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--retrieval", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    file = read_yaml(arguments.variants)
    rows: list[dict[str, Any]] = []
    for seed in file["seeds"]:
        for name, different in file["variants"].items():
            config = build(FinetuneConfig, file["common"] | different | {"seed": seed}, name)
            with tempfile.TemporaryDirectory() as folder:
                rows += finetuned(arguments, name, config, Path(folder), score_start=not rows)
            # After every variant: a run is long.
            write_result(arguments.out, {"settings": file, "rows": rows})


if __name__ == "__main__":
    main()
