"""How recipes are run: one stage, or all stages of a model with its evaluation and its card."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoints.export import export_model
from ..checkpoints.init import init_model, parse_gate
from ..io.loading import is_lam, locate_model, weights_identity
from ..io.progress import Progress, Silent, Task
from ..model.checks_lam import read_json
from ..model.modeling_lam import LAMModel
from ..model.state_lam import wrote
from .cache import Teacher, model_key
from .data import TokenTable, load_or_tokenize
from .distill import DistillConfig, Distiller
from .finetune import FinetuneConfig, Finetuner, load_student
from .longtext import LongTextConfig, LongTextTrainer
from .loop import process_state, replace_folder
from .plots import plot_run
from .recipe import Stage, read_recipe, stage_named
from .relational import RelationalDistiller
from .report import FinishedStage, evaluate_models, model_card
from .trainer import RunConfig, RunProgress, Trainer


def run_stage(
    stage: Stage,
    student: str | Path,
    out: str | Path,
    data: str | Path,
    cache: str | Path | None = None,
    reports_to: Progress | None = None,
) -> RunProgress:
    """Run or resume a stage.

    Args:
        stage: what to do.
        student: LAM folder to start from.
        out: folder of the run.
        data: folder that relative paths start from.
        cache: of the embeddings of teachers; by default `out`/teachers.
        reports_to: gets a task for what comes before the updates, and one for them; by default nothing is shown.

    Raises:
        ValueError: for settings that do not fit, or if `out` holds a run with others or from another start.
    """
    config = stage.config  # what cannot be is refused before anything is written
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with process_state().main_process_first():  # the others find what it has written
        _check_start(student, out)
    reports_to = reports_to or Silent()
    trainer = _trainer(stage, config, student, out, Path(data), cache, reports_to)
    trainer.prepare()
    on_step = _reporter(stage.name, reports_to.task(stage.name, config.steps))
    return trainer.run(stage.evaluate_every, stage.checkpoint_every, on_step)


def _reporter(name: str, updates: Task) -> Callable[[RunProgress], None]:
    """What is called after every update and says so, every tenth time with loss, speed and the best dev score."""
    said = 0

    def report(progress: RunProgress) -> None:
        nonlocal said
        note = None
        if progress.step % 10 == 0:
            loss = progress.losses.get("loss", math.nan)
            speed = progress.tokens / max(progress.seconds, 1e-9)
            note = f"{name}  loss {loss:.4f}  {speed:,.0f} tokens/s  best dev {progress.best_score:.4f}"
        updates.advance(progress.step - said, note)
        said = progress.step

    return report


def _trainer(
    stage: Stage,
    config: RunConfig,
    student: str | Path,
    out: Path,
    data: Path,
    cache: str | Path | None,
    reports_to: Progress,
) -> Trainer:
    """The trainer of a stage; arguments as of `run_stage`."""
    model, tokenizer = load_student(student)
    common: dict[str, Any] = {
        "student": model,
        "tokenizer": tokenizer,
        "config": config,
        "folder": out,
        "dev_file": data / stage.dev,
        "cache_folder": cache,
        "reports_to": reports_to,
        "tensorboard": stage.tensorboard,
    }
    exclude = [data / path for path in stage.exclude]
    if isinstance(config, FinetuneConfig):
        return Finetuner(data=data, exclude=exclude, **common)
    if isinstance(config, LongTextConfig):
        return LongTextTrainer(data=data, **common)
    table = _table(stage, config, out, data, exclude, tokenizer, reports_to)
    if isinstance(config, DistillConfig):
        return Distiller(teacher=_teacher(stage, tokenizer, student), table=table, **common)
    return RelationalDistiller(table=table, **common)


def _table(
    stage: Stage,
    config: Any,
    out: Path,
    data: Path,
    exclude: list[Path],
    tokenizer: PreTrainedTokenizerBase,
    reports_to: Progress,
) -> TokenTable:
    if not stage.text and stage.hub_dataset is None:
        raise ValueError(f"Stage {stage.name} needs texts: give `text` or `hub_dataset`.")
    advance = reports_to.task("Reading texts").advance
    keep_texts = not isinstance(config, DistillConfig)
    sources = [data / path for path in stage.text]
    options = (config.max_length, advance, keep_texts, stage.text_limits)
    with process_state().main_process_first():
        return load_or_tokenize(out, sources, stage.hub_dataset, exclude, tokenizer, *options)


def _teacher(stage: Stage, tokenizer: PreTrainedTokenizerBase, student: str | Path) -> PreTrainedModel:
    teacher = locate_model(stage.teacher)
    if AutoTokenizer.from_pretrained(teacher, trust_remote_code=False).get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"{stage.teacher} has another vocabulary than {student}; layer-wise distillation needs the same. "
            "Stage relational takes any teacher."
        )
    return AutoModel.from_pretrained(teacher, dtype=torch.float32, trust_remote_code=False)


def _check_start(student: str | Path, out: Path) -> None:
    """Remember what a run started from; raise ValueError if that was something else."""
    lam = LAMModel.from_pretrained(student) if is_lam(student) else None
    fingerprint = model_key(Teacher(str(student)).load()) if lam is None else lam.fingerprint()
    record = out / "start.json"
    if not record.exists():
        record.write_text(json.dumps({"student": Path(student).name, "fingerprint": fingerprint}) + "\n")
        return
    then = read_json(record).get("fingerprint")
    if then != fingerprint and (lam is None or not isinstance(then, str) or not wrote(lam, then)):
        raise ValueError(
            f"{out} holds a run that started from other weights (fingerprint {then}) than {student} ({fingerprint}): "
            "an earlier stage has changed. Use another folder, or delete that one."
        )


def with_models(stage: Stage, made: dict[str, Path]) -> Stage:
    """The stage with the folders of teachers, and of a guide, that earlier stages made."""
    teachers = stage.teachers
    settings = stage.settings | ({"teachers": teachers} if teachers else {})
    for holder, key in [(settings, "guide"), *((teacher, "name") for teacher in teachers)]:
        name = stage_named(holder.get(key))
        if name is not None:
            holder[key] = str(made[name])
    return replace(stage, settings=settings)


def average_models(shares: dict[Path, float], out: Path) -> None:
    """Write the LAM whose weights are the mean of those of LAM folders, each with its share."""
    total: dict[str, torch.Tensor] = {}
    for folder, share in shares.items():
        model = LAMModel.from_pretrained(folder, dtype=torch.float32)
        for name, x in model.state_dict().items():
            total[name] = total.get(name, 0) + share * x
    model.load_state_dict(total)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder, trust_remote_code=False).save_pretrained(out)


def run_recipe(
    path: str | Path,
    out: str | Path,
    data: str | Path,
    changes: dict[str, dict[str, Any]] | None = None,
    reports_to: Progress | None = None,
) -> Path:
    """Run or resume all stages of a recipe, evaluate, and write the model folder with its card.

    `out` gets start/, a folder for each stage, teachers/, results.json, the model's folder and, where matplotlib is
    installed, plots/.

    Args:
        path: of the recipe, see `find_recipe`.
        out: folder of the run.
        data: folder that relative paths start from.
        changes: see `read_recipe`.
        reports_to: see `run_stage`.

    Returns:
        the model's folder.

    Raises ValueError where several processes were started, which only a stage alone may use.
    """
    if (processes := process_state().num_processes) > 1:
        raise ValueError(f"A recipe runs in one process, got {processes}; only its stages alone run in several.")
    recipe, stages = read_recipe(path, changes)
    out = Path(out)
    data = Path(data)
    student = out / "start"
    if not (student / "model.safetensors").exists():
        gate = parse_gate(recipe.gate)
        replace_folder(student, lambda folder: init_model(locate_model(recipe.base), folder, gate, recipe.seed))
    done: list[FinishedStage] = []
    bests: dict[str, Path] = {}
    for number, stage in enumerate(stages, 1):
        folder = out / f"{number}-{stage.name}"
        if stage.trains_a_teacher:
            start = Path(locate_model(stage.start))
        else:
            earlier = stage_named(stage.start)
            start = student if earlier is None else bests[earlier]
        progress = run_stage(with_models(stage, bests), start, folder, data, out / "teachers", reports_to)
        done.append(FinishedStage(stage, folder, progress))
        bests[stage.name] = folder / "best"
        student = student if stage.trains_a_teacher else bests[stage.name]
    if recipe.average:
        shares = {bests[name]: share for name, share in recipe.average.items()}
        student = out / "average"
        replace_folder(student, lambda folder: average_models(shares, folder))
    model = out / recipe.name
    scores = out / "results.json"
    before = weights_identity(model)
    export_model(student, model)
    if before == weights_identity(model) and scores.exists():  # scored already
        results = read_json(scores)["numbers"]["models"]
    else:
        results = evaluate_models(recipe, model, data, scores, reports_to or Silent())
    card = model_card(recipe, model, done, results)
    (model / "README.md").write_text(card, encoding="utf-8")
    if find_spec("matplotlib"):
        for finished in done:
            plot_run(finished.folder, out / "plots" / f"{finished.folder.name}.png")
    return model
