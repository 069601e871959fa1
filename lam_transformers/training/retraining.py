"""Ablations trained again: same start, same seed, same data in the same order, same number of updates."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..evaluation.data import Data
from ..evaluation.models import load_encoder, model_record
from ..evaluation.part import Context, Settings
from ..evaluation.research.ablation import (
    ABLATIONS,
    FULL,
    RETRAINED,
    Scores,
    Tasks,
    keep_off,
    with_lam,
    without,
)
from ..io.progress import Progress, Silent
from ..io.results import Numbers, write_result


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
    progress: Progress | None = None,
    settings: Settings = Settings(),  # noqa: B008 - frozen
) -> Path:
    """Distil the full model and every ablation from `base` once per seed, into OUT/ablation_retrained.json.

    Every run starts from the LAM that `lam init` makes of `base` with that seed; of `model` only the name,
    tokenizer, rank of the output gate and way of reading are used. Runs lie in RUNS/NAME-SEED and resume.

    Args:
        model: the LAM whose results the ablations are shown beside.
        base: the teacher, and where every run starts.
        text: files or folders of training text.
        data: the evaluation's data sets.
        out: folder of the result files.
        runs: folder of the training runs.
        steps: updates of each run.
        tokens_per_batch: of each update.
        seeds: of the start and of the order of the data, two at least.
        only: names of ablations; none: all.
        progress: is told what is being done; by default nothing is shown.
        settings: of the evaluation.

    Returns:
        the result file.

    Raises:
        ValueError: for a model that is no LAM, unknown names, or fewer than two seeds.
    """
    from transformers import AutoModel

    from ..checkpoints.init import lam_from_bert
    from ..io.loading import locate_model
    from .data import load_or_tokenize
    from .distill import DistillConfig, Distiller

    if unknown := [name for name in only if name not in ABLATIONS]:
        raise ValueError(f"There is no ablation {', '.join(unknown)}; there are {', '.join(ABLATIONS)}.")
    if len(set(seeds)) < 2:
        raise ValueError(f"At least two seeds are needed to tell a difference from noise, got {list(seeds)}.")
    encoder = load_encoder(model)
    if encoder.lam is None:
        raise ValueError(f"{model} is no LAM.")
    record = model_record(model, encoder)
    context = Context(encoder, [], data, settings, progress=progress or Silent())
    tasks = Tasks(context)
    dev = data.path("stsb_dev")
    exclude = [dev]
    teacher = AutoModel.from_pretrained(locate_model(base), dtype=torch.float32, trust_remote_code=False)
    table = load_or_tokenize(Path(runs), text, None, exclude, encoder.tokenizer, DistillConfig.max_length)
    scored: dict[int, dict[str, Scores]] = {}
    for seed in seeds:
        scored[seed] = {}
        config = DistillConfig(
            steps=steps,
            warmup_steps=max(steps // 10, 1),
            decay_steps=steps // 2,
            tokens_per_batch=tokens_per_batch,
            seed=seed,
        )
        for name in (FULL, *(only or ABLATIONS)):
            folder = Path(runs) / f"{name.replace(' ', '-')}-{seed}"
            torch.manual_seed(seed)
            like = encoder.lam.config
            student = lam_from_bert(
                locate_model(base), output_gate_rank=like.output_gate_rank, two_way_chunk=like.two_way_chunk
            )
            if name != FULL:
                student = without(student, name)
            distiller = Distiller(
                student=student,
                tokenizer=encoder.tokenizer,
                config=config,
                folder=folder,
                dev_file=dev,
                teacher=teacher,
                table=table,
            )
            distiller.prepare()
            if name != FULL:
                keep_off(student, name)
            context.say(f"{name}, seed {seed}: {steps} updates")
            run = distiller.run(evaluate_every=steps, checkpoint_every=max(steps // 4, 1))
            scored[seed][name] = tasks.score(with_lam(encoder, student.eval()))
            context.say(f"{name}, seed {seed}: {run.tokens:,} tokens, loss {run.losses.get('loss', 0.0):.4f}")
    return write_retrained(
        out, record, tasks, scored, base=base, steps=steps, tokens=run.tokens, texts=[Path(path).name for path in text]
    )


def write_retrained(
    out: str | Path,
    record: dict[str, Any],
    tasks: Tasks,
    scored: Mapping[int, Mapping[str, Scores]],
    *,
    base: str,
    steps: int,
    tokens: int,
    texts: Sequence[str],
) -> Path:
    """Write OUT/ablation_retrained.json and return its path.

    Args:
        out: folder of the result files.
        record: of the model beside whose results the ablations are shown (`model_record`); its checksum is left out,
            for its weights are not used.
        tasks: on which the models were scored.
        scored: scores of the full model and of every ablation, by seed.
        base: where the runs started.
        steps, tokens: of each run.
        texts: names of what was trained on.
    """
    tables = {str(seed): tasks.compare(scores) for seed, scores in scored.items()}
    numbers = {
        "rows": _over_seeds(list(tables.values())),
        "seeds": tables,
        "base": base,
        "steps": steps,
        "tokens": tokens,
        "texts": list(texts),
        **tasks.describe(),
    }
    model = {name: value for name, value in record.items() if name != "checksum"}
    path = Path(out) / f"{RETRAINED.name}.json"
    write_result(path, numbers, part=RETRAINED.name, model=model, missing=[])
    return path


def _over_seeds(tables: list[list[Numbers]]) -> list[Numbers]:
    """Means over the seeds. The interval spans those of all seeds: noise of the test set and of the training."""
    rows: list[Numbers] = []
    for same in zip(*tables, strict=True):
        row = {"ablation": same[0]["ablation"], "label": same[0]["label"]}
        for task in ("stsb_dev", "long_text"):
            row[task] = float(np.mean([x[task] for x in same]))
            row[f"{task}_difference"] = float(np.mean([x[f"{task}_difference"] for x in same]))
            row[f"{task}_by_seed"] = [x[f"{task}_difference"] for x in same]
            row[f"{task}_interval"] = [
                min(x[f"{task}_interval"][0] for x in same),
                max(x[f"{task}_interval"][1] for x in same),
            ]
        rows.append(row)
    return rows
