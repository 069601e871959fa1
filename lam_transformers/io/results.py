"""Results as files: numbers with the command, commit, versions, machine and date they were measured with."""

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
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        )
        return described.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def command_line() -> str:
    """The command as one would type it; of paths outside the folder only the last part, the rest is this machine's."""
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


def write_result(path: str | os.PathLike[str], numbers: dict[str, Any], **more: Any) -> None:
    """Write {**more, "environment": ..., "numbers": ...} as JSON; the file is replaced only when complete.

    Args:
        path: the file; the folders above it are made where they are missing.
        numbers: what was measured.
        more: further entries beside "numbers".

    Raises:
        ValueError: for a number that is NaN or infinite: a number is measured or absent (None).
        OSError: if the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {**more, "environment": environment(), "numbers": numbers}
    write_text(path, json.dumps(record, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
