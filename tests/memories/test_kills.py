"""kill -9 at many points of every operation: nothing is lost, nothing doubled, and the next call finishes the work."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lam_transformers.memories import Memory, store

from . import child

ROOT = Path(__file__).parents[2]
OPERATIONS = ("add", "messages", "supersede", "update", "delete", "document", "rebuild", "migrate")
QUESTIONS = ("where do I live", "whales and otters", "dog Rex tea")


class Killer:
    """Starts the children of `child` and tells how they ended."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.memories.child", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def run(self, place, operation, statement=0, seconds=None):
        order = {"place": str(place), "operation": operation, "statement": statement, "seconds": seconds}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def killer():
    killer = Killer()
    yield killer
    killer.close()


def contents(memory):
    """All that a user can see, without ids."""
    seen = [
        (m.text, m.kind, m.version, m.key, m.position) for m in memory.list(user_id="ada", kinds=["memory", "turn"])
    ]
    seen += sorted(
        (m.text, m.kind, m.version, m.position) for m in memory.list(user_id="ada", kinds=["document", "paragraph"])
    )
    results = [[(r.text, round(r.score, 5)) for r in memory.search(query, user_id="ada")] for query in QUESTIONS]
    return seen, results


def is_in(seen, allowed):
    """Whether contents are among those allowed, scores within 1e-4."""
    return any(
        seen[0] == other[0]
        and [[text for text, _ in results] for results in seen[1]]
        == [[text for text, _ in results] for results in other[1]]
        and all(
            abs(score - wanted) < 1e-4
            for results, others in zip(seen[1], other[1], strict=True)
            for (_, score), (_, wanted) in zip(results, others, strict=True)
        )
        for other in allowed
    )


class Files:
    """Memories in SQLite files of a folder."""

    def __init__(self, folder):
        self.folder = folder

    def new(self, name):
        """The place of an empty memory."""
        return self.folder / f"{name}.db"

    def copy(self, place, name):
        """A copy of a memory that nobody has open."""
        return shutil.copyfile(place, self.new(name))

    def was_migrated(self, place):
        """Whether a migration left a copy of what was there before."""
        return Path(f"{place}.schema-{store.SCHEMA_VERSION - 1}").exists()

    def remove(self, place):
        for path in self.folder.glob(f"{place.name}*"):
            path.unlink()


def check_kills(killer, places, operation, model, kills, timed, monkeypatch):
    """Kills an operation at `kills` statements and after `timed` random times, and does it again each time."""
    order = random.Random(operation)
    prepared = places.new("prepared")
    child.prepare(str(prepared), model)
    with Memory(prepared, model=model) as memory:
        before = contents(memory)
    if operation == "migrate":
        monkeypatch.setattr(store, "MIGRATIONS", {store.SCHEMA_VERSION: child.LATER})
        monkeypatch.setattr(store, "SCHEMA_VERSION", store.SCHEMA_VERSION + 1)
    whole = places.copy(prepared, "whole")
    ended = killer.run(whole, operation)
    assert ended["code"] == 0
    assert places.was_migrated(whole) == (operation == "migrate")
    with Memory(whole, model=model) as memory:
        after = contents(memory)
        rows = memory.stats()["versions"]
    statements = range(1, ended["statements"] + 1)
    points = [(point, None) for point in order.sample(statements, min(kills, len(statements)))]
    points += [(0, order.uniform(0, 0.1)) for _ in range(timed)]
    for number, (statement, seconds) in enumerate(points):
        place = places.copy(prepared, f"killed{number}")
        killed = killer.run(place, operation, statement, seconds)
        assert killed["code"] == -signal.SIGKILL or seconds is not None
        with Memory(place, model=model, now=lambda: 1_800_000_100.0) as memory:
            problems = memory.verify()
            assert problems in ([], ["rebuild() was interrupted; call it again to finish it"])
            if model is None or not problems:  # while it is rebuilt, a memory is searched by words alone
                assert is_in(contents(memory), (before, after))
            child.operate(memory, operation)
            assert is_in(contents(memory), (after,))
            assert memory.stats()["versions"] == rows
            assert memory.verify() == []
        places.remove(place)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_anywhere_and_done_again(killer, tmp_path, operation, monkeypatch):
    check_kills(killer, Files(tmp_path), operation, None, kills=5, timed=0, monkeypatch=monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_at_fifty_points(killer, tmp_path, operation, monkeypatch):
    check_kills(killer, Files(tmp_path), operation, None, kills=50, timed=20, monkeypatch=monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_with_a_model(tmp_path, operation, tiny_encoder_folder, tiny_encoder, monkeypatch):
    killer = Killer(tiny_encoder_folder)
    try:
        check_kills(killer, Files(tmp_path), operation, tiny_encoder, kills=25, timed=10, monkeypatch=monkeypatch)
    finally:
        killer.close()


def test_what_was_deleted_is_gone_even_if_the_cleaning_was_killed(killer, tmp_path):
    place = str(tmp_path / "memory.db")
    child.prepare(place)
    total = killer.run(shutil.copyfile(place, tmp_path / "whole.db"), "delete")["statements"]
    for point in range(max(1, total - 12), total + 1):
        here = shutil.copyfile(place, tmp_path / f"{point}.db")
        killer.run(here, "delete", point)
        with Memory(here, model=None) as memory:
            gone = not any("Rex" in record.text for record in memory.list(user_id="ada"))
        raw = b"".join(path.read_bytes() for path in tmp_path.glob(f"{point}.db*"))
        assert gone != (b"Rex" in raw)
