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
def rows():
    """{door: {task: error or None}}, which becomes the row of these versions where it is asked for."""
    results = {}
    yield results
    if (name := os.environ.get("LAM_COMPATIBILITY")) and results.keys() == set(DOORS):
        write_row(name, results)


@pytest.mark.parametrize("door", DOORS)
def test_what_users_do_equals_one_pass(door, rows, tmp_path):
    """All tasks in one process, since importing everything takes longer than most of them."""
    shutil.copytree(ROOT / "LAM-base-v1", tmp_path / "LAM-base-v1")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(Path(lam_transformers.__file__).parents[1]) if door == "installed" else ""
    done = subprocess.run(
        [sys.executable, "-P", str(Path(__file__).with_name("compatibility_tasks.py")), door, "results.json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed[-3000:]
    errors = json.loads((tmp_path / "results.json").read_text())
    assert tuple(errors) == TASKS
    rows[door] = errors
    assert not any(errors.values()), f"{errors}\n{printed[-6000:]}"
    assert "deprecated. Use `cache`" not in printed


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
