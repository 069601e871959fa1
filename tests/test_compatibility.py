"""The versions that are installed, as a stranger and as a user of the package: what is done with a LAM equals one pass.

With LAM_COMPATIBILITY=lowest, pinned or newest the run writes its row of docs/COMPATIBILITY.md.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from handbook import ROOT
from packaging.specifiers import SpecifierSet

import lam_transformers

from .compatibility_table import DOORS, PAGE, RESULTS, ROWS, TASKS, tables, tables_of_page, write_row


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """{door: {task: error or None}} and what the processes printed."""
    results, printed = {}, {}
    for door in DOORS:
        folder = tmp_path_factory.mktemp(door)
        shutil.copytree(ROOT / "LAM-base-v1", folder / "LAM-base-v1")
        environment = {**os.environ, "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
        environment["PYTHONPATH"] = str(Path(lam_transformers.__file__).parents[1]) if door == "installed" else ""
        done = subprocess.run(
            [sys.executable, "-P", str(Path(__file__).with_name("compatibility_tasks.py")), door, "results.json"],
            cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        printed[door] = done.stdout + done.stderr
        assert done.returncode == 0, printed[door][-3000:]
        results[door] = json.loads((folder / "results.json").read_text())
    if name := os.environ.get("LAM_COMPATIBILITY"):
        write_row(name, results)
    return results, printed


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("door", DOORS)
def test_what_users_do_equals_one_pass(found, door, task):
    results, printed = found
    assert results[door][task] is None, printed[door][-6000:]


@pytest.mark.parametrize("door", DOORS)
def test_nothing_is_said_about_deprecated_names(found, door):
    assert "deprecated. Use `cache`" not in found[1][door]


def test_the_page_shows_the_rows_that_the_runs_wrote():
    assert tables() in tables_of_page()


@pytest.mark.parametrize("name", ROWS)
def test_the_folder_allows_the_versions_that_were_tested(name):
    requirements = json.loads((ROOT / "LAM-base-v1/config_sentence_transformers.json").read_text())["requirements"]
    row = json.loads((RESULTS / f"compatibility_{name}.json").read_text())
    assert requirements.keys() == {"transformers", "sentence-transformers", "torch", "huggingface-hub"}
    for package, wanted in requirements.items():
        version = row["environment"]["versions"][package]
        assert SpecifierSet(wanted["specifier"]).contains(version), (package, version)
        assert version.partition("+")[0] in wanted["reason"], f"{PAGE.name} and the folder name other versions"
