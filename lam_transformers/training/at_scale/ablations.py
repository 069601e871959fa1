"""The ablations that compare.py trained, scored as `lam evaluate ablation` scores its own: OUT/ablation_retrained.json.

    python -m lam_transformers.training.at_scale.ablations --runs FOLDER --model LAM-base-v1 --data DIR --out OUT

FOLDER has results.jsonl and ARM-SEED.safetensors of the full model ("slow64") and of every ablation in `ARM_OF`.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from ...checkpoints.init import lam_from_bert
from ...evaluation.data import Data
from ...evaluation.models import load_encoder, model_record
from ...evaluation.part import Context, Settings
from ...evaluation.research.ablation import FULL, Scores, Tasks, with_lam, without
from ...io.loading import locate_model
from ...io.progress import Progress, Silent
from ...model.modeling_lam import LAMModel
from ..retraining import write_retrained
from .compare import ARMS
from .pool_teacher import BASE
from .texts import say

# The variant of compare.py that was trained without each component of `evaluation.research.ablation.ABLATIONS`.
ARM_OF = {
    FULL: "slow64",
    "delta rule": "without delta rule",
    "two memories": "without two memories",
    "flux": "without flux",
    "decay": "without decay",
    "two-way reading": "causal",
}


def trained_model(runs: Path, base: str, name: str, seed: int) -> LAMModel:
    """The model that was trained without component `name`; FULL: with all of them."""
    parameters = load_file(runs / f"{ARM_OF[name].replace(' ', '-')}-{seed}.safetensors")
    gate_rank = parameters["0.memory.gate_proj.weight"].shape[1]
    torch.manual_seed(seed)
    model = lam_from_bert(locate_model(base), output_gate_rank=gate_rank, two_way_chunk=ARMS[ARM_OF[FULL]]["chunk"])
    if name != FULL:
        model = without(model, name)
    known = model.layers.state_dict()
    if strange := sorted(set(parameters) - set(known)):
        raise ValueError(f"{runs} has parameters that no LAM has: {', '.join(strange)}.")
    model.layers.load_state_dict(known | {key: value.float() for key, value in parameters.items()})
    return model.eval()


def score_runs(
    runs: Path,
    model: str,
    data: Data,
    out: Path,
    base: str = BASE,
    settings: Settings = Settings(),  # noqa: B008 - frozen
    progress: Progress | None = None,
) -> Path:
    """Write OUT/ablation_retrained.json.

    Args:
        runs: folder of compare.py.
        model: the LAM beside whose results they are shown; of it only name and tokenizer are used.
        data: the evaluation's data sets.
        out: folder of the result files.
        base: where the runs started.
        settings: of the evaluation.
        progress: is told what is being done; by default nothing is shown.

    Returns:
        the result file.

    Raises:
        ValueError: if the model is no LAM, or the runs have fewer than two seeds of the full model.
    """
    encoder = load_encoder(model)
    if encoder.lam is None:
        raise ValueError(f"{model} is no LAM.")
    lines = [json.loads(line) for line in (runs / "results.jsonl").read_text().splitlines()]
    full = [line for line in lines if line["arm"] == ARM_OF[FULL]]
    seeds = sorted({line["seed"] for line in full})
    if len(seeds) < 2:
        raise ValueError(f"At least two seeds are needed to tell a difference from noise, {runs} has {seeds}.")
    tasks = Tasks(Context(encoder, [], data, settings, progress=progress or Silent()))
    scored: dict[int, dict[str, Scores]] = {}
    for seed in seeds:
        scored[seed] = {}
        for name in ARM_OF:
            scored[seed][name] = tasks.score(with_lam(encoder, trained_model(runs, base, name, seed)))
            say(f"scored: {name}, seed {seed}")
    return write_retrained(
        out,
        model_record(model, encoder),
        tasks,
        scored,
        base=base,
        steps=full[0]["steps"],
        tokens=full[0]["tokens"],
        texts=["the pool of docs/TRAINING.md"],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Score the ablations that compare.py trained.")
    parser.add_argument("--runs", type=Path, required=True, help="folder of compare.py")
    parser.add_argument("--model", default="LAM-base-v1")
    parser.add_argument("--data", type=Path, required=True, help="data folder of the evaluation")
    parser.add_argument("--out", type=Path, required=True, help="folder of the result files")
    parser.add_argument("--base", default=BASE, help="where the runs started")
    options = parser.parse_args(arguments)
    say(score_runs(options.runs, options.model, Data(options.data), options.out, options.base))


if __name__ == "__main__":
    main()
