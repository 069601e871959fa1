"""Recipes: what a training stage, or a whole model, is made with, in YAML files. `run` runs them."""

import difflib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_origin

import yaml

from .data import read_file_list
from .distill import DistillConfig
from .finetune import FinetuneConfig
from .longtext import LongTextConfig
from .relational import RelationalConfig
from .trainer import RunConfig

Built = TypeVar("Built")

RECIPES = Path(__file__).parent / "recipes"
STAGES: dict[str, type[RunConfig]] = {
    "distill": DistillConfig,
    "relational": RelationalConfig,
    "finetune": FinetuneConfig,
    "longtext": LongTextConfig,
}


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
        text_limits: number of texts to take of a file, by its name, see `read_texts`; all of the others.
        hub_dataset: Hub data set with a text column, besides or instead of them.
        exclude: evaluation sets; training texts that equal one of their sentences are dropped. In a recipe, also the
            name of a list of files (`read_file_list`), beside the recipe or of the package: evaluation_files.txt.
        teacher: of "distill"; those of "relational" are in its settings.
        evaluate_every, checkpoint_every: updates between validations and checkpoints.
        tensorboard: also log for TensorBoard.
    """

    stage: str
    dev: str
    name: str = ""
    start: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)
    text_limits: dict[str, int] = field(default_factory=dict)
    hub_dataset: str | None = None
    exclude: list[str] = field(default_factory=list)
    teacher: str = "all-MiniLM-L6-v2"
    evaluate_every: int = 250
    checkpoint_every: int = 250
    tensorboard: bool = False

    def __post_init__(self) -> None:
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
        """Whether the stage fine-tunes another model than the recipe's."""
        return bool(self.start) and stage_named(self.start) is None

    @property
    def teachers(self) -> list[dict[str, Any]]:
        """Those in the settings, each a copy."""
        return [dict(teacher) for teacher in self.settings.get("teachers", [])]

    @property
    def config(self) -> RunConfig:
        """The settings as the configuration of the stage. Raises ValueError, see `build`."""
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
        dimensions: numbers of leading dimensions with which sts is evaluated too.
        baselines: Hub ids or folders to evaluate beside the model.
    """

    name: str
    base: str = "all-MiniLM-L6-v2"
    gate: str = "32"
    seed: int = 0
    stages: list[str | dict[str, Any]] = field(default_factory=list)
    average: dict[str, float] = field(default_factory=dict)
    sts: dict[str, str] = field(default_factory=dict)
    retrieval: dict[str, str] = field(default_factory=dict)
    dimensions: list[int] = field(default_factory=list)
    baselines: list[str] = field(default_factory=list)


def build(kind: type[Built], values: dict[str, Any], what: str) -> Built:
    """A dataclass from a mapping. Raises ValueError, naming it, for an unknown name, a missing one or a wrong type."""
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
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
        elif wanted in (int, bool, str) and type(value) is not wanted:
            raise ValueError(f"{what}: {name} must be of type {wanted.__name__}, got {value!r}.")
        elif get_origin(wanted) in (list, dict) and value is not None and type(value) is not get_origin(wanted):
            raise ValueError(f"{what}: {name} must be of type {get_origin(wanted).__name__}, got {value!r}.")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{what}: {error}") from error


def find_recipe(path: str | Path, beside: Path | None = None) -> Path:
    """A recipe file: as named, beside another one, or among those of this package (with or without "recipes/").

    Raises FileNotFoundError, naming those that there are.
    """
    file = _find_file(Path(path), beside)
    if file is None:
        names = sorted(file.name for file in RECIPES.glob("*.yaml"))
        raise FileNotFoundError(f"There is no recipe {path}; the package has {', '.join(names)}.")
    return file


def _find_file(path: Path, beside: Path | None) -> Path | None:
    places = [path, *([beside / path] if beside else []), RECIPES / path, RECIPES / path.name]
    return next((place for place in places if place.is_file()), None)


def _excluded(names: str | list[str], beside: Path | None) -> list[str]:
    """The evaluation files of a stage, of which a recipe may give the name of a list."""
    if not isinstance(names, str):
        return names
    file = _find_file(Path(names), beside)
    if file is None:
        raise FileNotFoundError(
            f"exclude: there is no list of files {names}. Name one, or several evaluation files as [FILE, ...]."
        )
    return read_file_list(file)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ValueError if it holds something else."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping, got {type(content).__name__}.")
    return content


def read_stage(
    source: str | Path | dict[str, Any], changes: dict[str, Any] | None = None, beside: Path | None = None
) -> Stage:
    """A stage from a recipe file, from a mapping, or from {"recipe": FILE, and what differs}.

    Args:
        source: file or mapping.
        changes: further fields of the stage or of its settings, by name.
        beside: folder in which files that the source names may be.
    """
    content: dict[str, Any] = {}
    if isinstance(source, dict):
        content = dict(source)
        if "recipe" in content:
            content = merge(read_yaml(find_recipe(content.pop("recipe"), beside)), content)
    else:
        file = find_recipe(source, beside)
        beside = file.parent
        content = read_yaml(file)
    own = {f.name for f in fields(Stage)}
    for name, value in (changes or {}).items():
        content = merge(content, {name: value} if name in own else {"settings": {name: value}})
    if content.get("exclude"):
        content["exclude"] = _excluded(content["exclude"], beside)
    return build(Stage, content, "stage")


def merge(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`content` with `changes`; settings are merged name by name."""
    settings = (content.get("settings") or {}) | (changes.get("settings") or {})
    return content | changes | ({"settings": settings} if settings else {})


def read_recipe(path: str | Path, changes: dict[str, dict[str, Any]] | None = None) -> tuple[Recipe, list[Stage]]:
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
        teachers = (teacher.get("name") for teacher in stage.teachers)
        for model in (stage.start, stage.settings.get("guide"), *teachers):
            name = stage_named(model)
            if name is not None and name not in before:
                raise ValueError(f"{path}: stage {stage.name}: no stage before it is called {name}.")
        start = before.get(stage_named(stage.start))
        if start is not None and start.trains_a_teacher:
            raise ValueError(f"{path}: stage {stage.name} cannot start from {stage.start}, which trains a teacher.")
        before[stage.name] = stage
    return recipe, stages


def stage_named(model: Any) -> str | None:
    """NAME where a model is given as "stage:NAME", what that stage makes; None for a Hub id or folder."""
    return model.removeprefix("stage:") if str(model).startswith("stage:") else None
