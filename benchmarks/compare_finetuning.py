"""One model fine-tuned in several ways by as many updates: dev scores of the start and of the last weights of each.

    python benchmarks/compare_finetuning.py START VARIANTS.yaml --data DIR --out FILE.json

VARIANTS.yaml: `common`, settings of a `FinetuneConfig`; `variants`, by name the settings in which each differs;
`seeds`. Paths in it start from the current folder. Rows that share a sentence with an evaluation set are left out
(evaluation_files.txt of the recipes). Nothing is selected: what is scored is what the last update left. STS-B dev and
SICK-R dev with 95 % bootstrap intervals over the pairs, and the difference of each variant to the first one of its seed
on the same resamples; Cranfield and CISI with --retrieval.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lam_transformers.io.results import write_result
from lam_transformers.scoring.retrieval import evaluate_retrieval
from lam_transformers.scoring.statistics import bootstrap_correlations, interval, pearson, spearman
from lam_transformers.scoring.sts import cosines, evaluate_sts, read_pairs
from lam_transformers.training.data import read_file_list
from lam_transformers.training.finetune import FinetuneConfig, Finetuner, load_student
from lam_transformers.training.recipe import RECIPES, build, read_yaml

RESAMPLES = 1000
STS = ("stsb_dev", "sickr_dev")
Cosines = dict[str, np.ndarray]


def dev_scores(run: Finetuner, data: Path, retrieval: bool) -> tuple[dict[str, Any], Cosines]:
    """Scores of the run's model as it is, and the cosines [pairs] that it gives, by set."""
    encoder = run.encoder.eval()

    def encode(texts: Sequence[str]) -> np.ndarray:
        return encoder.encode(list(texts), batch_size=64, show_progress_bar=False)

    scores: dict[str, Any] = {}
    cosines_by_set: Cosines = {}
    for name in STS:
        path = data / f"sts/{name}.jsonl.gz"
        first, second, _ = read_pairs(path)
        embeddings = np.asarray(encode(first + second), dtype=np.float64)
        scores[name] = evaluate_sts(lambda _, known=embeddings: known, path, (128,), RESAMPLES)
        cosines_by_set[name] = cosines(embeddings)
    for name in ("cranfield", "cisi") if retrieval else ():
        scores[name] = evaluate_retrieval(encode, data / "retrieval" / name)
    return scores, cosines_by_set


def differences(ours: Cosines, reference: Cosines, data: Path) -> dict[str, Any]:
    """How much higher the correlations of `ours` are, with intervals on the same resamples, by set and kind."""
    found: dict[str, Any] = {}
    for name in STS:
        labels = read_pairs(data / f"sts/{name}.jsonl.gz")[2]
        series = {"ours": ours[name], "reference": reference[name]}
        drawn = bootstrap_correlations(series, labels, RESAMPLES)
        for kind, measure in (("pearson", pearson), ("spearman", spearman)):
            difference = float(measure(ours[name], labels) - measure(reference[name], labels))
            resampled = drawn[kind]["ours"] - drawn[kind]["reference"]
            found[f"{name} {kind}"] = {"mean": difference, "interval": interval(resampled)}
    return found


def make_run(arguments: argparse.Namespace, config: FinetuneConfig, folder: Path) -> Finetuner:
    student, tokenizer = load_student(arguments.start)
    torch.manual_seed(config.seed)
    return Finetuner(
        student=student,
        tokenizer=tokenizer,
        config=config,
        folder=folder,
        dev_file=arguments.data / "sts/stsb_dev.jsonl.gz",
        exclude=[arguments.data / path for path in read_file_list(RECIPES / "evaluation_files.txt")],
    )


def train(run: Finetuner) -> dict[str, Any]:
    """Train to the end; what was trained on."""
    progress = run.run(evaluate_every=run.config.steps, checkpoint_every=run.config.steps)
    return {
        "seed": run.config.seed,
        "rows": {name: len(data) for name, data in run.datasets.items()},
        "updates": progress.step,
        "tokens": progress.tokens,
        "seconds": round(progress.seconds),
    }


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
        first: Cosines | None = None
        for name, different in file["variants"].items():
            config = build(FinetuneConfig, file["common"] | different | {"seed": seed}, name)
            with tempfile.TemporaryDirectory() as folder:
                run = make_run(arguments, config, Path(folder))
                if not rows:
                    rows.append({"variant": "start"} | dev_scores(run, arguments.data, arguments.retrieval)[0])
                trained = train(run)
            scores, ours = dev_scores(run, arguments.data, arguments.retrieval)
            rows.append({"variant": name} | trained | scores)
            if first is None:
                first = ours
            else:
                rows[-1]["difference"] = differences(ours, first, arguments.data)
            print(rows[-1], flush=True)
            # After every variant: a run is long.
            write_result(arguments.out, {"settings": file, "rows": rows})


if __name__ == "__main__":
    main()
