"""Two results, or two checkpoints, side by side."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..io.results import read_result, read_results
from ..scoring.sts import evaluate_sts
from .data import Data
from .models import load_encoder, model_record

SHOWN = 6  # significant digits


def compare_results(first: str, second: str, data: str | os.PathLike | None = None) -> list[str]:
    """Lines of a table of every number that both have, with the difference.

    Args:
        first, second: result files, folders of results, or models (measured here: STS-B dev and test).
        data: folder of data sets for models.

    Returns:
        the lines, ready to be printed.

    Raises:
        ValueError: where there is nothing to compare, or only one of the two is a model.
        MissingData: for models, where STS-B is missing.
    """
    kinds = [_is_result(name) for name in (first, second)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"{first} and {second} are not of the same kind: give two results or two models.")
    if all(kinds):
        sides = [dict(_results(Path(name))) for name in (first, second)]
    else:
        sides = [_measure(name, Data(data)) for name in (first, second)]
    rows = [(name, sides[0][name], sides[1][name]) for name in sides[0] if name in sides[1]]
    if not rows:
        raise ValueError(f"{first} and {second} have no number in common; were the same parts measured?")
    width = max(len(name) for name, *_ in rows)
    lines = [f"A: {first}", f"B: {second}", f"{'':{width}}  {'A':>14}  {'B':>14}  {'B - A':>14}"]
    lines += [f"{name:{width}}  {a:>14.{SHOWN}g}  {b:>14.{SHOWN}g}  {b - a:>+14.{SHOWN}g}" for name, a, b in rows]
    only = [sorted(sides[i].keys() - sides[1 - i].keys()) for i in (0, 1)]
    lines += [f"Only in {'AB'[i]}: {len(names)} numbers, such as {names[0]}." for i, names in enumerate(only) if names]
    return lines


def _is_result(name: str) -> bool:
    path = Path(name)
    if path.is_dir():
        return not (path / "config.json").exists()
    return path.suffix == ".json"


def _results(path: Path) -> Iterator[tuple[str, float]]:
    """(name, number) of every number of a result file or folder; the model under test is called LAM."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    records = read_results(path) if path.is_dir() else {path.stem: read_result(path)}
    if not records:
        raise ValueError(f"{path} holds no results.")
    for part, record in records.items():
        ours = record.get("model", {}).get("name")
        yield from _flat(record["numbers"], part, ours)


# Fields that say what a row is about.
IDENTITY = (
    "model",
    "probe",
    "pillar",
    "ablation",
    "memory",
    "through",
    "keys",
    "rule",
    "overwrites",
    "pairs",
    "task",
    "tokens",
    "depth",
    "lag",
    "baseline",
    "from",
)


def _flat(value: Any, name: str, ours: str | None) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, x in value.items():
            yield from _flat(x, f"{name}/{'LAM' if key == ours else key}", ours)
    elif isinstance(value, list):
        for i, x in enumerate(value):
            fields = [f"{key}={x[key]}" for key in IDENTITY if key in x] if isinstance(x, dict) else []
            label = ",".join(fields).replace(f"model={ours}", "model=LAM") or str(i)
            rest = {key: y for key, y in x.items() if key not in IDENTITY} if isinstance(x, dict) else x
            yield from _flat(rest, f"{name}[{label}]", ours)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)


def _measure(name: str, data: Data) -> dict[str, float]:
    """What can be said of a checkpoint in a minute."""
    encoder = load_encoder(name)
    numbers = {"parameters": float(model_record(name, encoder)["parameters"])}
    for split in ("stsb_dev", "stsb_test"):
        scores = evaluate_sts(encoder.encode, data.path(split))
        numbers |= {f"{split}/{key}": value for key, value in scores.items()}
    return numbers
