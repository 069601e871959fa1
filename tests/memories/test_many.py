"""Several threads and processes write and search at once: nothing is lost and nobody hears of a lock."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lam_transformers.memories import Memory

ROOT = Path(__file__).parents[2]
WORKER = """
import sys, threading
from lam_transformers.memories import Memory
place, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
memory = Memory(place, model=None)
fact = memory.add(f"Counter of {name}.", user_id=name)[0].id
errors = []
def work(thread):
    try:
        for i in range(count):
            memory.add([{"role": "user", "content": f"{name} {thread} turn {i}"}], user_id="ada", run_id="shared")
            memory.update(fact, f"Counter of {name}: {thread} {i}.")
            memory.search(f"{name} turn", user_id="ada")
    except BaseException as error:
        errors.append(error)
threads = [threading.Thread(target=work, args=(t,)) for t in range(2)]
[t.start() for t in threads]; [t.join() for t in threads]
assert not errors, errors
"""


@pytest.mark.parametrize("count", [12])
def test_four_processes_of_two_threads(place, count):
    Memory(place, model=None).close()
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, place, f"worker{i}", str(count)], stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        for i in range(4)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors
    with Memory(place, model=None) as memory:
        turns = memory.list(user_id="ada", limit=1000)
        assert len(turns) == 4 * 2 * count
        assert [turn.position for turn in turns] == list(range(len(turns)))
        assert len({turn.text for turn in turns}) == len(turns)
        for i in range(4):
            (fact,) = memory.list(user_id=f"worker{i}")
            assert fact.version == 1 + 2 * count
            assert len(memory.history(fact.id)) == fact.version
        assert memory.verify() == []


def test_eight_threads_with_a_model(memory):
    errors = []

    def work(name):
        try:
            for i in range(5):
                memory.add([{"role": "user", "content": f"the dog {name} runs {i}"}], user_id="ada", run_id="chat")
                assert memory.search(f"dog {name}", user_id="ada")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    turns = memory.list(user_id="ada")
    assert [turn.position for turn in turns] == list(range(40))
    assert memory.verify() == []


def test_creating_the_same_file_at_once(tmp_path):
    place = str(tmp_path / "new.db")
    code = f"from lam_transformers.memories import Memory; Memory({place!r}, model=None).add('x', user_id='u')"
    workers = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(4)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    with Memory(place, model=None) as memory:
        assert len(memory.list(user_id="u")) == 4
