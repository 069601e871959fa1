"""Result files: numbers with the command, commit, versions, machine and date they were measured with."""

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .atomic import write_text

Numbers = dict[str, Any]
Record = dict[str, Any]  # a whole result file
Results = dict[str, Record]  # the result files of a folder, by the names of their parts

PACKAGES = (
    "lam-transformers",
    "torch",
    "transformers",
    "sentence-transformers",
    "tokenizers",
    "numpy",
    "scipy",
    "scikit-learn",
    "mteb",
)


def processor_name() -> str:
    """The processor as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit_name() -> str:
    """The git commit, with "-dirty" if tracked files differ from it, or "unknown" outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        )
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def command_line() -> str:
    """The command as one would type it. A path outside the folder is cut to its last part: the rest is this machine."""
    program = Path(sys.argv[0])
    first = ["lam"] if program.name == "lam" else ["python", os.path.relpath(program)]
    return shlex.join([*first, *(Path(x).name if os.path.isabs(x) or x.startswith("..") else x for x in sys.argv[1:])])


def environment() -> dict[str, Any]:
    """What a number depends on besides the code that measured it."""
    import psutil
    import torch

    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "command": command_line(),
        "commit": commit_name(),
        "versions": versions,
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def write_result(path: str | os.PathLike[str], numbers: Numbers, **more: object) -> None:
    """Write {**more, "environment": ..., "numbers": ...} as JSON; the file is replaced only when complete.

    Args:
        path: the file; its folder is made.
        numbers: what was measured.
        more: further fields, such as the part, the model and the settings.

    Raises:
        ValueError: for a number that is NaN or infinite: a number is measured or absent (None).
        OSError: if the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {**more, "environment": environment(), "numbers": numbers}
    write_text(path, json.dumps(record, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_result(path: Path) -> Record:
    """A result file.

    Raises:
        ValueError: if it is none; the message names the file.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record, dict) and {"environment", "numbers"} <= record.keys():
            return record
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON file ({error}); remove it and run its part again.") from error
    raise ValueError(f"{path} is no result of the evaluation suite: it has no environment or no numbers.")


def read_results(folder: str | os.PathLike[str]) -> Results:
    """The result files of a folder by part, sorted by name.

    A part that trains its own models, from none of the weights that the others measure, has no checksum.

    Raises:
        ValueError: for files that are no results, or results of several models.
    """
    results = {path.stem: read_result(path) for path in sorted(Path(folder).glob("*.json"))}
    models = {record["model"].get("checksum"): record["model"]["name"] for record in results.values()}
    models.pop(None, None)
    if len(models) > 1:
        raise ValueError(f"{folder} holds results of several models: {', '.join(models.values())}. Separate them.")
    return results


def numbers_of(results: Results, part: str) -> Numbers | None:
    """The numbers of a part, or None if it was not measured."""
    return results.get(part, {}).get("numbers") or None


def model_name(results: Results) -> str:
    """The name of the model that the results are about."""
    name: str = next(iter(results.values()))["model"]["name"]
    return name


def baseline_names(results: Results) -> list[str]:
    """The sentence-transformers models that were measured beside the model, sorted."""
    return sorted({name for record in results.values() for name in record.get("baselines", {})})
