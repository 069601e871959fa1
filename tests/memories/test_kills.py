"""kill -9 at many points of every operation: nothing is lost, nothing doubled, and the next call finishes the work."""

import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lam_transformers.memories import Memory

from . import child

ROOT = Path(__file__).parents[2]
OPERATIONS = ("add", "messages", "supersede", "update", "delete", "document", "rebuild")
KILLS = 8  # of each operation


def run(place, operation, limit):
    command = [sys.executable, "-m", "tests.memories.child", str(place), operation, str(limit)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)


def contents(memory):
    """All that a user can see, without ids."""
    seen = [
        (m.text, m.kind, m.version, m.key, m.position) for m in memory.list(user_id="ada", kinds=["memory", "turn"])
    ]
    seen += sorted(
        (m.text, m.kind, m.version, m.position) for m in memory.list(user_id="ada", kinds=["document", "paragraph"])
    )
    results = [
        [(r.text, round(r.score, 6)) for r in memory.search(query, user_id="ada")]
        for query in ("where do I live", "whales and otters", "dog Rex tea")
    ]
    return seen, results


@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_anywhere_and_done_again(tmp_path, operation):
    prepared = tmp_path / "prepared.db"
    child.prepare(str(prepared))
    with Memory(prepared, model=None) as memory:
        before = contents(memory)

    def copy(name):
        shutil.copyfile(prepared, tmp_path / name)
        return str(tmp_path / name)

    whole = copy("whole.db")
    ended = run(whole, operation, 0)
    assert ended.returncode == 0, ended.stderr
    with Memory(whole, model=None) as memory:
        after = contents(memory)
        rows = memory.stats()["versions"]
    points = random.Random(operation).sample(range(1, int(ended.stdout) + 1), KILLS)
    for point in points:
        place = copy(f"{point}.db")
        killed = run(place, operation, point)
        assert killed.returncode == -signal.SIGKILL
        with Memory(place, model=None, now=lambda: 1_800_000_100.0) as memory:
            assert memory.verify() in ([], ["rebuild() was interrupted; call it again to finish it"])
            assert contents(memory) in (before, after)
            child.operate(memory, operation)
            assert contents(memory) == after
            assert memory.stats()["versions"] == rows
            assert memory.verify() == []


def test_what_was_deleted_is_gone_even_if_the_cleaning_was_killed(tmp_path):
    place = str(tmp_path / "memory.db")
    child.prepare(place)
    total = int(run(shutil.copyfile(place, tmp_path / "whole.db"), "delete", 0).stdout)
    for point in range(max(1, total - 12), total + 1):
        here = shutil.copyfile(place, tmp_path / f"{point}.db")
        run(here, "delete", point)
        with Memory(here, model=None) as memory:
            gone = not any("Rex" in record.text for record in memory.list(user_id="ada"))
        raw = b"".join(path.read_bytes() for path in tmp_path.glob(f"{point}.db*"))
        assert gone != (b"Rex" in raw)
