"""Which versions pip installs: `python version_bounds.py lowest | newest | unchanged`.

lowest: prints the lower bounds of pyproject.toml, one a line, for pip to keep to. newest: prints nothing, so that pip
takes the newest that the bounds allow. unchanged: ends with 0 if the newest that the bounds allow of each package that
LAM is built on is the one in constraints.txt, so that what was tested with constraints.txt is the newest; with 1 and
the differences if not. torch is left out of all; the Makefile chooses it.
"""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("train", "bulk")  # those of `test` may be newer
# The packages whose insides or file formats LAM depends on; the others are used through their first page only.
BUILT_ON = (
    "transformers",
    "sentence-transformers",
    "huggingface-hub",
    "tokenizers",
    "safetensors",
    "accelerate",
    "numpy",
)


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(extra: str, optional: dict[str, list[str]]) -> Iterator[str]:
    """What an extra asks for, and what the extras of this package that it names ask for."""
    for requirement in optional[extra]:
        own = re.match(r"lam-transformers\[([^\]]*)\]", requirement)
        if own:
            for name in own[1].split(","):
                yield from requirements(name.strip(), optional)
        else:
            yield requirement


def lowest() -> list[str]:
    described = project()
    optional = described["optional-dependencies"]
    wanted = [*described["dependencies"], *(x for extra in EXTRAS for x in requirements(extra, optional))]
    bounds: dict[str, str] = {}
    for requirement in wanted:
        lower = re.match(r"([\w.-]+)(?:\[[^\]]*\])?>=([\d.]+)", requirement)
        if lower and lower[1] != "torch":
            bounds[lower[1]] = max(bounds.get(lower[1], "0"), lower[2], key=lambda x: [int(n) for n in x.split(".")])
    return [f"{name}=={version}" for name, version in bounds.items()]


def newer() -> list[str]:
    """The packages of BUILT_ON of which pip would take another version than constraints.txt names.

    pip is asked about each on its own. What they allow of each other can only lower a version, so nothing newer is
    missed.
    """
    wanted = [x for x in project()["dependencies"] if normalised(re.split(r"[^\w.-]", x)[0]) in BUILT_ON]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--ignore-installed"]
    report = subprocess.run([*pip, "--report", "-", *wanted], check=True, stdout=subprocess.PIPE, text=True).stdout
    offered = {normalised(x["metadata"]["name"]): x["metadata"]["version"] for x in json.loads(report)["install"]}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {normalised(name): version for name, _, version in (line.partition("==") for line in lines)}
    return [f"{name} {offered[name]}, not {pinned[name]}" for name in BUILT_ON if offered[name] != pinned[name]]


if __name__ == "__main__":
    if sys.argv[1] == "lowest":
        print("\n".join(lowest()))
    elif sys.argv[1] == "unchanged" and (differences := newer()):
        sys.exit("newer than in constraints.txt: " + ", ".join(differences))
