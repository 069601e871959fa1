"""Pictures of training runs: loss and dev score from log.jsonl."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def read_log(folder: Path) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, Any]]]:
    """Records of updates and of validations by step; of a step that was repeated after a resume, the last.

    Raises FileNotFoundError if the folder has no log.
    """
    path = Path(folder) / "log.jsonl"
    if not path.exists():
        raise FileNotFoundError(f"{folder} has no log.jsonl: name the folder of a training run.")
    updates: dict[int, dict[str, Any]] = {}
    scores: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path} is damaged in the line {line[:60]!r} ({error}).") from error
        (scores if "evaluation_seconds" in record else updates)[record["step"]] = record
    return dict(sorted(updates.items())), dict(sorted(scores.items()))


def plot_run(folder: Path, path: Path, title: str | None = None) -> None:
    """Write a PNG with the losses of a run and its dev scores over the updates.

    Raises FileNotFoundError if the folder has no log, ValueError if matplotlib is not installed.
    """
    updates, scores = read_log(folder)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(f"matplotlib is not installed ({error}): pip install matplotlib.") from error
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in _columns(updates.values(), "learning_rate", "gradient_norm", "tokens", "seconds", "step"):
        points = [(step, record[name]) for step, record in updates.items() if record.get(name, 0) > 0]
        left.plot(*zip(*points, strict=True), label=name, linewidth=1)
    left.set(xlabel="update", ylabel="loss", yscale="log")
    for name in _columns(scores.values(), "evaluation_seconds", "step"):
        points = [(step, record[name]) for step, record in scores.items() if name in record]
        right.plot(*zip(*points, strict=True), label=name.removeprefix("dev_"), marker=".", linewidth=1)
    right.set(xlabel="update", ylabel="dev score")
    for axes in (left, right):
        if axes.lines:
            axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    figure.suptitle(title or Path(folder).name)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _columns(records: Iterable[dict[str, Any]], *without: str) -> list[str]:
    """The names in the records, each once, in their order, without some."""
    return list(dict.fromkeys(name for record in records for name in record if name not in without))
