"""Versions for pip to keep to, one a line: `python version_bounds.py lowest` prints the lower bounds of pyproject.toml.

"newest" prints nothing: pip takes the newest that the bounds allow. torch is left out; the Makefile chooses it.
"""

import re
import sys
import tomllib
from pathlib import Path

EXTRAS = ("train", "bulk")  # those of `dev` are tools


def lowest() -> list[str]:
    project = tomllib.loads(Path(__file__).parent.with_name("pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(x for extra in EXTRAS for x in project["optional-dependencies"][extra])]
    bounds: dict[str, str] = {}
    for requirement in wanted:
        found = re.match(r"([\w.-]+)(?:\[[^\]]*\])?>=([\d.]+)", requirement)
        if found and found[1] != "torch":
            bounds[found[1]] = max(bounds.get(found[1], "0"), found[2], key=lambda x: [int(n) for n in x.split(".")])
    return [f"{name}=={version}" for name, version in bounds.items()]


if __name__ == "__main__":
    print("\n".join(lowest() if sys.argv[1] == "lowest" else []))
