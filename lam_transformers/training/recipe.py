"""Recipes: what a training stage, or a whole model, is made with, in YAML files; and how to run them."""

import difflib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModel, AutoTokenizer

from ..checkpoints.export import export_model
from ..checkpoints.init import init_model, parse_gate
from ..io.loading import is_lam, locate_model, weights_identity
from ..model.checks_lam import read_json
from ..model.modeling_lam import LAMModel
from ..model.state_lam import wrote
from .cache import Teacher, model_key
from .data import load_or_tokenize
from .distill import DistillConfig, Distiller
from .finetune import FinetuneConfig, Finetuner
from .longtext import LongTextConfig, LongTextTrainer
from .loop import Progress, RunConfig, process_state, replace_folder
from .plots import plot_run
from .relational import RelationalConfig, RelationalDistiller
from .report import evaluate_models, model_card

logger = logging.getLogger(__name__)

RECIPES = Path(__file__).parent / "recipes"
STAGES: dict[str, type[RunConfig]] = {
    "distill": DistillConfig,
    "relational": RelationalConfig,
    "finetune": FinetuneConfig,
    "longtext": LongTextConfig,
}
# Shown while something runs: (what, how many or None) -> a function that is called with how many more are done.
Show = Callable[[str, int | None], Callable[[int], None]]


@dataclass(kw_only=True)
class Stage:
    """One stage of training. Paths may be relative to the data folder.

    Attributes:
        stage: "distill", "relational", "finetune" or "longtext".
        start: "stage:NAME", an earlier stage of the recipe to start from; by default the one before. Or Hub id or
            folder of another model to fine-tune, to be a teacher: later stages name it by stage:NAME, and the next
            one starts from the stage before it.
        name: of its folder in the run of a recipe; by default the stage's.
        dev: pair file for validation and selection.
        settings: fields of the stage's configuration.
        text: files and folders of training texts ("distill", "relational").
        text_limits: texts to take of a file, by its name, see `read_texts`; all of the others.
        hub_dataset: Hub data set with a text column, besides or instead of them.
        exclude: evaluation sets; training texts that equal one of their sentences are dropped.
        teacher: of "distill"; those of "relational" are in its settings.
        evaluate_every, checkpoint_every: updates between validations and checkpoints.
        tensorboard: also log for TensorBoard.
    """

    stage: str
    dev: str
    name: str = ""
    start: str = ""
    settings: dict = field(default_factory=dict)
    text: list[str] = field(default_factory=list)
    text_limits: dict[str, int] = field(default_factory=dict)
    hub_dataset: str | None = None
    exclude: list[str] = field(default_factory=list)
    teacher: str = "all-MiniLM-L6-v2"
    evaluate_every: int = 250
    checkpoint_every: int = 250
    tensorboard: bool = False

    def __post_init__(self):
        self.name = self.name or self.stage
        for name in ("evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be a number of updates of at least 1, got {getattr(self, name)}.")
        if self.stage not in STAGES:
            raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {self.stage!r}.")
        if self.trains_a_teacher and self.stage != "finetune":
            raise ValueError(f"Stage {self.name}: only fine-tuning starts from another model, not {self.stage}.")

    @property
    def trains_a_teacher(self) -> bool:
        return bool(self.start) and _stage_named(self.start) is None

    @property
    def teachers(self) -> list[dict]:
        """Those in the settings, each a copy."""
        return [dict(teacher) for teacher in self.settings.get("teachers", [])]

    @property
    def config(self) -> RunConfig:
        return build(STAGES[self.stage], self.settings, f"settings of stage {self.name}")


@dataclass(kw_only=True)
class Recipe:
    """A model in stages.

    Attributes:
        name: of the model; its folder in the run has that name.
        base: Hub id or folder of the BERT that the model starts from.
        gate: output gate, see `parse_gate`.
        seed: of the weights without a counterpart in the base.
        stages: stage recipes: the name of a file beside this one, or its content, or {recipe: FILE, and what differs}.
        average: share of each stage, by name, of the released weights: the weighted mean of the bests of these stages
            (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models"). A share may be negative: what a stage
            changed, added to another (Ilharco et al. 2023, "Editing models with task arithmetic"). Empty: the best of
            the last stage.
        sts, retrieval: evaluation sets by name, path to a pair file or to a folder in the BEIR layout.
        dimensions: also evaluate sts with so many leading dimensions.
        baselines: Hub ids or folders to evaluate beside the model.
    """

    name: str
    base: str = "all-MiniLM-L6-v2"
    gate: str = "32"
    seed: int = 0
    stages: list = field(default_factory=list)
    average: dict[str, float] = field(default_factory=dict)
    sts: dict[str, str] = field(default_factory=dict)
    retrieval: dict[str, str] = field(default_factory=dict)
    dimensions: list[int] = field(default_factory=list)
    baselines: list[str] = field(default_factory=list)


def build(kind: type, values: dict, what: str) -> Any:
    """A dataclass from a mapping. Raises ValueError, naming it, for an unknown name, a missing one or a wrong type."""
    known = {f.name: f for f in fields(kind)}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}."
            raise ValueError(f"{what}: there is no {name!r}{hint}")
        wanted = known[name].type
        # YAML reads 1e-3, without a dot, as a string.
        if wanted is float and isinstance(value, int | str) and not isinstance(value, bool):
            try:
                values = values | {name: float(value)}
            except ValueError as error:
                raise ValueError(f"{what}: {name} must be a number, got {value!r}.") from error
        elif wanted in (int, bool, str, list, dict) and type(value) is not wanted:
            raise ValueError(f"{what}: {name} must be of type {wanted.__name__}, got {value!r}.")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{what}: {error}") from error


def find_recipe(path: str | Path, beside: Path | None = None) -> Path:
    """A recipe file: as named, beside another one, or among those of this package (with or without "recipes/").

    Raises FileNotFoundError, naming those that there are.
    """
    path = Path(path)
    places = [path, *([beside / path] if beside else []), RECIPES / path, RECIPES / path.name]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        names = sorted(file.name for file in RECIPES.glob("*.yaml"))
        raise FileNotFoundError(f"There is no recipe {path}; the package has {', '.join(names)}.")
    return found


def read_yaml(path: Path) -> dict:
    """The mapping in a YAML file. Raises ValueError if it holds something else."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping, got {type(content).__name__}.")
    return content


def read_stage(source: str | Path | dict, changes: dict | None = None, beside: Path | None = None) -> Stage:
    """A stage from a recipe file, from a mapping, or from {"recipe": FILE, and what differs}.

    Args:
        changes: further fields of the stage or of its settings, by name.
    """
    content: dict = {}
    if isinstance(source, dict):
        content = dict(source)
        if "recipe" in content:
            content = merge(read_yaml(find_recipe(content.pop("recipe"), beside)), content)
    else:
        content = read_yaml(find_recipe(source, beside))
    own = {f.name for f in fields(Stage)}
    for name, value in (changes or {}).items():
        content = merge(content, {name: value} if name in own else {"settings": {name: value}})
    return build(Stage, content, "stage")


def merge(content: dict, changes: dict) -> dict:
    """`content` with `changes`; settings are merged name by name."""
    settings = (content.get("settings") or {}) | (changes.get("settings") or {})
    return content | changes | ({"settings": settings} if settings else {})


def read_recipe(path: str | Path, changes: dict[str, dict] | None = None) -> tuple[Recipe, list[Stage]]:
    """A recipe and its stages.

    Args:
        changes: by the name of a stage, see `read_stage`.

    Raises ValueError for unknown names, stages of one name, changes to a stage that is not there, or a stage that names
    a later one.
    """
    path = find_recipe(path)
    recipe = build(Recipe, read_yaml(path), str(path))
    stages = [read_stage(stage, beside=path.parent) for stage in recipe.stages]
    names = [stage.name for stage in stages]
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: stages need names of their own, got {', '.join(names)}.")
    if unknown := set(recipe.average) - set(names):
        raise ValueError(f"{path}: average names no stage: {', '.join(sorted(unknown))}.")
    if other := {stage.name for stage in stages if stage.trains_a_teacher} & set(recipe.average):
        raise ValueError(f"{path}: average names {', '.join(sorted(other))}, which trains another model, a teacher.")
    if recipe.average and abs(sum(recipe.average.values()) - 1) > 1e-6:
        raise ValueError(f"{path}: the shares of average must add up to 1, got {recipe.average}.")
    if unknown := set(changes or {}) - set(names):
        raise ValueError(f"{path} has no stage {', '.join(unknown)}; it has {', '.join(names)}.")
    for i, stage in enumerate(stages):
        if changes and stage.name in changes:
            stages[i] = read_stage(asdict(stage), changes[stage.name])
    before: dict[str | None, Stage] = {}
    for stage in stages:
        for model in (stage.start, *(teacher.get("name") for teacher in stage.teachers)):
            name = _stage_named(model)
            if name is not None and name not in before:
                raise ValueError(f"{path}: stage {stage.name}: no stage before it is called {name}.")
        start = before.get(_stage_named(stage.start))
        if start is not None and start.trains_a_teacher:
            raise ValueError(f"{path}: stage {stage.name} cannot start from {stage.start}, which trains a teacher.")
        before[stage.name] = stage
    return recipe, stages


def _stage_named(model: Any) -> str | None:
    """NAME where a model is given as "stage:NAME", what that stage makes; None for a Hub id or folder."""
    return model.removeprefix("stage:") if str(model).startswith("stage:") else None


def run_stage(
    stage: Stage, student: Path, out: Path, data: Path, cache: Path | None = None, show: Show | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> Progress:  # fmt: skip
    """Run or resume a stage.

    Args:
        student: LAM folder to start from.
        out: folder of the run.
        data: folder that relative paths start from.
        cache: of the embeddings of teachers; by default `out`/teachers.
        show: see `Show`.
        on_step: called after every update.

    Raises:
        ValueError: for settings that do not fit, or if `out` holds a run with others or from another start.
    """
    config, out, data = stage.config, Path(out), Path(data)
    dev, exclude = data / stage.dev, [data / path for path in stage.exclude]
    out.mkdir(parents=True, exist_ok=True)
    with process_state().main_process_first():  # the others find what it has written
        _check_start(student, out)
    options: dict[str, Any] = {"tensorboard": stage.tensorboard}
    run: Any
    if isinstance(config, FinetuneConfig):
        run = Finetuner(student, config, out, dev, data, exclude, cache, show, **options)
    else:
        tokenizer = AutoTokenizer.from_pretrained(student, trust_remote_code=False)
        model = LAMModel.from_pretrained(student, dtype=torch.float32)
        where = cache or out / "teachers"
        if isinstance(config, LongTextConfig):
            run = LongTextTrainer(model, tokenizer, config, out, dev, data, where, show, **options)
        elif isinstance(config, DistillConfig):
            table = _table(stage, config, out, data, exclude, tokenizer, show)
            run = Distiller(model, _teacher(stage, tokenizer, student), tokenizer, table, config, out, dev, **options)
        else:
            table = _table(stage, config, out, data, exclude, tokenizer, show)
            run = RelationalDistiller(model, tokenizer, table, config, out, dev, where, show, **options)
    return run.run(stage.evaluate_every, stage.checkpoint_every, on_step)


def _table(stage, config, out, data, exclude, tokenizer, show):
    if not stage.text and stage.hub_dataset is None:
        raise ValueError(f"Stage {stage.name} needs texts: give `text` or `hub_dataset`.")
    advance = None if show is None else show("Reading texts", None)
    keep_texts = not isinstance(config, DistillConfig)
    sources = [data / path for path in stage.text]
    options = (config.max_length, advance, keep_texts, stage.text_limits)
    with process_state().main_process_first():
        return load_or_tokenize(out, sources, stage.hub_dataset, exclude, tokenizer, *options)


def _teacher(stage: Stage, tokenizer, student):
    teacher = locate_model(stage.teacher)
    if AutoTokenizer.from_pretrained(teacher, trust_remote_code=False).get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"{stage.teacher} has another vocabulary than {student}; layer-wise distillation needs the same. "
            "Stage relational takes any teacher."
        )
    return AutoModel.from_pretrained(teacher, dtype=torch.float32, trust_remote_code=False)


def _check_start(student: Path, out: Path) -> None:
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


def _with_teachers(stage: Stage, made: dict[str, Path]) -> Stage:
    """The stage with the folders of teachers that earlier stages made."""
    teachers = stage.teachers
    for teacher in teachers:
        name = _stage_named(teacher.get("name"))
        if name is not None:
            teacher["name"] = str(made[name])
    return replace(stage, settings=stage.settings | {"teachers": teachers}) if teachers else stage


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
    path: str | Path, out: Path, data: Path, changes: dict[str, dict] | None = None, show: Show | None = None,
    on_stage: Callable[[Stage], Callable[[Progress], None]] | None = None,
) -> Path:  # fmt: skip
    """Run or resume all stages of a recipe, evaluate, and write the model folder with its card.

    `out` gets start/, a folder for each stage, teachers/, results.json, the model's folder and, where matplotlib is
    installed, plots/.

    Args:
        changes: see `read_recipe`.
        on_stage: called with each stage; returns what is called after its updates.

    Returns:
        the model's folder.

    Raises ValueError where several processes were started, which only a stage alone may use.
    """
    if (processes := process_state().num_processes) > 1:
        raise ValueError(f"A recipe runs in one process, got {processes}; only its stages alone run in several.")
    recipe, stages = read_recipe(path, changes)
    out, data = Path(out), Path(data)
    student = out / "start"
    if not (student / "model.safetensors").exists():
        gate = parse_gate(recipe.gate)
        replace_folder(student, lambda folder: init_model(locate_model(recipe.base), folder, gate, recipe.seed))
    done: list[tuple[Stage, Path, Progress]] = []
    bests: dict[str, Path] = {}
    for number, stage in enumerate(stages, 1):
        folder = out / f"{number}-{stage.name}"
        on_step = None if on_stage is None else on_stage(stage)
        if stage.trains_a_teacher:
            start = Path(locate_model(stage.start))
        else:
            start = bests[_stage_named(stage.start)] if stage.start else student
        progress = run_stage(_with_teachers(stage, bests), start, folder, data, out / "teachers", show, on_step)
        done.append((stage, folder, progress))
        bests[stage.name] = folder / "best"
        student = student if stage.trains_a_teacher else bests[stage.name]
    if recipe.average:
        shares = {bests[name]: share for name, share in recipe.average.items()}
        student = out / "average"
        replace_folder(student, lambda folder: average_models(shares, folder))
    model, scores = out / recipe.name, out / "results.json"
    before = weights_identity(model)
    export_model(student, model)
    if before == weights_identity(model) and scores.exists():  # scored already
        results = read_json(scores)["numbers"]["models"]
    else:
        results = evaluate_models(recipe, model, data, scores, show)
    card = model_card(recipe, model, done, results)
    (model / "README.md").write_text(card, encoding="utf-8")
    if find_spec("matplotlib"):
        for _, folder, _ in done:
            plot_run(folder, out / "plots" / f"{folder.name}.png")
    return model
