"""examples/serving/ray_serve.py on a Ray cluster of this machine, one replica killed under load."""

import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
from handbook import ROOT

from .serving_texts import sentences, words

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray", reason="the ray extra is not installed")
serve = pytest.importorskip("ray.serve", reason="ray[serve] is not installed")
EXACT = 1e-6


@pytest.fixture(scope="module")
def handle(serving_folder):
    environment = {"env_vars": {"PYTHONPATH": f"{ROOT}:{ROOT / 'examples' / 'serving'}", "OMP_NUM_THREADS": "1"}}
    ray.init(num_cpus=4, log_to_driver=False, configure_logging=False, runtime_env=environment)
    sys.path.insert(0, str(ROOT / "examples" / "serving"))
    import ray_serve

    serve.start(http_options={"location": "NoServer"})
    yield serve.run(ray_serve.Embedder.bind(str(serving_folder)), route_prefix=None)
    serve.shutdown()
    ray.shutdown()


def replicas():
    from ray.util.state import list_actors

    actors = list_actors(filters=[("state", "=", "ALIVE")])
    return [actor for actor in actors if actor.class_name.startswith("ServeReplica")]


def test_a_replica_dies_under_load(handle, serving_model):
    texts = [*sentences(60), words(3000)]
    want = serving_model.encode(texts)
    assert abs(np.array(handle.embed.remote(texts).result(timeout_s=60)) - want).max() < EXACT
    answered, lost = [], []
    over = threading.Event()

    def ask(number):
        at = number
        while not over.is_set():
            at += 1
            try:
                got = handle.embed.remote([texts[at % 61]]).result(timeout_s=60)
            except Exception as error:
                lost.append(type(error).__name__)
            else:
                answered.append((at % 61, np.array(got[0])))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    before = len(answered)
    alive = replicas()
    assert len(alive) == 2
    os.kill(alive[0].pid, signal.SIGKILL)
    time.sleep(5)
    over.set()
    for thread in threads:
        thread.join(60)
    # The other replica went on; every answer is right, and lost is only what the dead one had.
    assert len(answered) > before + 20
    assert len(lost) <= 16, lost
    assert max(abs(got - want[i]).max() for i, got in answered) < EXACT
    deadline = time.monotonic() + 60
    while len(replicas()) < 2 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert len(replicas()) == 2
