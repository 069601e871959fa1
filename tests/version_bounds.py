"""Versions for pip to keep to, one a line: `python version_bounds.py lowest` prints the lower bounds of pyproject.toml.

"newest" prints nothing: pip takes the newest that the bounds allow. torch is left out; the Makefile chooses it.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

EXTRAS = ("train", "bulk")  # those of `test` may be newer


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
    project = tomllib.loads(Path(__file__).parent.with_name("pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(x for extra in EXTRAS for x in requirements(extra, optional))]
    bounds: dict[str, str] = {}
    for requirement in wanted:
        lower = re.match(r"([\w.-]+)(?:\[[^\]]*\])?>=([\d.]+)", requirement)
        if lower and lower[1] != "torch":
            bounds[lower[1]] = max(bounds.get(lower[1], "0"), lower[2], key=lambda x: [int(n) for n in x.split(".")])
    return [f"{name}=={version}" for name, version in bounds.items()]


if __name__ == "__main__":
    print("\n".join(lowest() if sys.argv[1] == "lowest" else []))
