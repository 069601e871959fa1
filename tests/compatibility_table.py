"""docs/COMPATIBILITY.md: which versions LAM was tested with, from the rows that `make compatibility` writes."""

import json
import os
import re
from pathlib import Path

from handbook import ROOT

from lam_transformers.io.results import environment

ROWS = {"lowest": "test-lowest", "pinned": "test", "newest": "test-newest"}
DOORS = ("stranger", "installed")
TASKS = ("encode", "long text", "session", "train", "export")
PACKAGES = ("transformers", "sentence-transformers", "torch", "huggingface-hub", "tokenizers", "accelerate", "numpy")
PAGE = ROOT / "docs/COMPATIBILITY.md"
RESULTS = ROOT / "benchmarks/results"
_TABLES = re.compile(r"(?s)(<!-- tables -->\n).*(<!-- end of tables -->)")


def write_row(name: str, found: dict[str, dict[str, str | None]]) -> None:
    """Write what a run found, {door: {task: error or None}}, as the row `name`, and the page's tables anew."""
    from importlib.metadata import version

    about = environment() | {"command": f"make {ROWS[name]}"}
    about["versions"] |= {package: version(package) for package in PACKAGES}
    path = RESULTS / f"compatibility_{name}.json"
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps({"environment": about, "found": found}, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    PAGE.write_text(_TABLES.sub(lambda m: m[1] + tables() + m[2], PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def tables() -> str:
    """The tables of the page, from the rows that there are."""
    paths = {name: RESULTS / f"compatibility_{name}.json" for name in ROWS}
    rows = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}
    lines = ["", "| versions | of | " + " | ".join(TASKS) + " |", "|---" * (2 + len(TASKS)) + "|"]
    for name, row in rows.items():
        for door in DOORS:
            cells = ["passes" if row["found"][door][task] is None else "**fails**" for task in TASKS]
            lines.append(f"| {name} | {door} | {' | '.join(cells)} |")
    lines += ["", "| package | " + " | ".join(rows) + " |", "|---" * (1 + len(rows)) + "|"]
    for package in ("python", *PACKAGES):
        lines.append(
            f"| {package} | " + " | ".join(row["environment"]["versions"][package] for row in rows.values()) + " |"
        )
    dates = (f"{name} {row['environment']['date']}" for name, row in rows.items())
    return "\n".join([*lines, "", f"Written by the runs: {', '.join(dates)}.", "", ""])


def tables_of_page(path: Path = PAGE) -> str:
    return _TABLES.search(path.read_text(encoding="utf-8"))[0]
