"""Several threads and processes write and search at once: nothing is lost and nobody hears of a lock."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lam_transformers.memories import Memory

ROOT = Path(__file__).parents[2]
# Until it has written `count` turns a thread, or the time is up; prints how many turns it has written.
WORKER = """
import sys, threading, time
from lam_transformers.memories import Memory
place, name, threads, count, seconds = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
memory = Memory(place, model=None)
fact = memory.add(f"Counter of {name}.", user_id=name)[0].id
end = time.monotonic() + seconds
errors = []
done = [0] * threads
def work(thread):
    try:
        while done[thread] < count and time.monotonic() < end:
            i = done[thread]
            memory.add([{"role": "user", "content": f"{name} {thread} turn {i}"}], user_id="ada", run_id="shared")
            memory.update(fact, f"Counter of {name}: {thread} {i}.")
            assert memory.search(f"{name} turn", user_id="ada")
            done[thread] += 1
    except BaseException as error:
        errors.append(error)
workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
[worker.start() for worker in workers]; [worker.join() for worker in workers]
assert not errors, errors
print(sum(done))
"""


def check_workers(place, threads, count, seconds):
    """Four processes write to one conversation, each also to a fact of its own, and search."""
    Memory(place, model=None).close()
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, place, f"worker{i}", *map(str, (threads, count, seconds))],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for i in range(4)
    ]  # fmt: skip
    done = []
    for worker in workers:
        output, errors = worker.communicate(timeout=seconds + 240)
        assert worker.returncode == 0, errors
        done.append(int(output))
    with Memory(place, model=None) as memory:
        turns = memory.list(user_id="ada", limit=1_000_000)
        assert len(turns) == sum(done)
        assert [turn.position for turn in turns] == list(range(len(turns)))
        assert len({turn.text for turn in turns}) == len(turns)
        for i, count in enumerate(done):
            (fact,) = memory.list(user_id=f"worker{i}")
            assert fact.version == 1 + count
            assert len(memory.history(fact.id)) == fact.version
        assert memory.verify() == []
    return done


def test_four_processes_of_two_threads(place):
    assert check_workers(place, threads=2, count=6, seconds=120) == [12] * 4


@pytest.mark.slow
def test_four_processes_of_eight_threads_for_a_minute(place):
    assert min(check_workers(place, threads=8, count=1_000_000, seconds=60)) > 0


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
