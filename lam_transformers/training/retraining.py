"""Ablations trained again: same start, same seed, same data in the same order, same number of updates."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..evaluation.data import Data
from ..evaluation.models import load_encoder, model_record
from ..evaluation.research.ablation import ABLATIONS, FULL, Tasks, keep_off, with_lam, without
from ..evaluation.suite import Context, Settings
from ..io.results import write_result

PART = "ablation_retrained"


def retrain_ablations(
    model: str,
    base: str,
    text: Sequence[Path],
    data: Data,
    out: Path,
    runs: Path,
    steps: int,
    tokens_per_batch: int,
    seeds: Sequence[int],
    only: Sequence[str] = (),
    say: Callable[[str], None] = print,
    settings: Settings = Settings(),  # noqa: B008 - frozen
) -> Path:
    """Distil the full model and every ablation from `base` once per seed, into OUT/ablation_retrained.json.

    Every run starts from the LAM that `lam init` makes of `base` with that seed; of `model` only the name,
    tokenizer and rank of the output gate are used. Runs lie in RUNS/NAME-SEED and resume.

    Raises ValueError for unknown names or fewer than two seeds.
    """
    from transformers import AutoModel

    from ..checkpoints.init import lam_from_bert
    from ..io.loading import base_path
    from .data import load_or_tokenize
    from .distill import DistillConfig, Distiller

    if unknown := [name for name in only if name not in ABLATIONS]:
        raise ValueError(f"There is no ablation {', '.join(unknown)}; there are {', '.join(ABLATIONS)}.")
    if len(set(seeds)) < 2:
        raise ValueError(f"At least two seeds are needed to tell a difference from noise, got {list(seeds)}.")
    encoder = load_encoder(model)
    if encoder.lam is None:
        raise ValueError(f"{model} is no LAM.")
    record, out = model_record(model, encoder), Path(out)
    del record["checksum"]  # its weights are not used
    context = Context(encoder, [], data, settings, say=say)
    tasks, dev = Tasks(context), data.path("stsb_dev")
    exclude = [dev]
    teacher = AutoModel.from_pretrained(base_path(base), dtype=torch.float32, trust_remote_code=False)
    table = load_or_tokenize(Path(runs), text, None, exclude, encoder.tokenizer, DistillConfig.max_length)
    found: dict[int, dict[str, Any]] = {}
    for seed in seeds:
        found[seed] = {}
        config = DistillConfig(
            steps=steps, warmup_steps=max(steps // 10, 1), decay_steps=steps // 2,
            tokens_per_batch=tokens_per_batch, seed=seed,
        )  # fmt: skip
        for name in (FULL, *(only or ABLATIONS)):
            folder = Path(runs) / f"{name.replace(' ', '-')}-{seed}"
            torch.manual_seed(seed)
            gate = encoder.lam.config.output_gate_rank
            student = lam_from_bert(base_path(base), output_gate_rank=gate)
            if name != FULL:
                student = without(student, name)
            distiller = Distiller(student, teacher, encoder.tokenizer, table, config, folder, dev)
            if name != FULL:
                keep_off(student, name)
            say(f"{name}, seed {seed}: {steps} updates")
            progress = distiller.run(evaluate_every=steps, checkpoint_every=max(steps // 4, 1))
            found[seed][name] = tasks.score(with_lam(encoder, student.eval()))
            say(f"{name}, seed {seed}: {progress.tokens:,} tokens, loss {progress.losses.get('loss', 0.0):.4f}")
    numbers = {
        "rows": _over_seeds([tasks.compare(scores) for scores in found.values()]),
        "seeds": {str(seed): tasks.compare(scores) for seed, scores in found.items()},
        "base": base, "steps": steps, "tokens": progress.tokens, "texts": [Path(path).name for path in text],
        **tasks.describe(),
    }  # fmt: skip
    path = out / f"{PART}.json"
    write_result(path, numbers, part=PART, model=record, missing=[])
    return path


def _over_seeds(tables: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Means over the seeds. The interval spans those of all seeds: noise of the test set and of the training."""
    rows = []
    for same in zip(*tables, strict=True):
        row = {"ablation": same[0]["ablation"], "label": same[0]["label"]}
        for task in ("stsb_dev", "long_text"):
            row[task] = float(np.mean([x[task] for x in same]))
            row[f"{task}_difference"] = float(np.mean([x[f"{task}_difference"] for x in same]))
            row[f"{task}_by_seed"] = [x[f"{task}_difference"] for x in same]
            row[f"{task}_interval"] = [
                min(x[f"{task}_interval"][0] for x in same), max(x[f"{task}_interval"][1] for x in same)
            ]  # fmt: skip
        rows.append(row)
    return json.loads(json.dumps(rows))
