"""`lam serve` as a process: how it starts, stops, and outlives the death of a worker."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import psutil
import pytest
from handbook import ROOT

from ..children import run_in_child
from .serving_texts import sentences, words

pytest.importorskip("fastapi", reason="the serve extra is not installed")
uvicorn = pytest.importorskip("uvicorn")
EXACT = 1e-6
START_SECONDS = 120


class Process:
    """`lam serve` with a tiny LAM."""

    def __init__(self, folder, log, *options):
        self.log = log
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "lam_transformers.cli", "serve", str(folder), "--port", "0", "--threads", "1"]
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [*command, *options], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + START_SECONDS
        while not (address := re.search(r"http://[\d.]+:\d+", self.text())):
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.url = address.group()
        self.wait()

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.text()
            try:
                if httpx.get(f"{self.url}/health", timeout=10).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError("The server does not become ready.")

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()


@pytest.fixture
def start(serving_folder, tmp_path):
    started = []

    def begin(*options) -> Process:
        started.append(Process(serving_folder, tmp_path / f"log{len(started)}", *options))
        return started[-1]

    yield begin
    for process in started:
        process.kill()


class Load:
    """Threads that ask until they are told to stop.

    Attributes:
        answered: requests that were answered with the right vector.
        refused: requests for which no connection was made: the port was closed.
        lost: what went wrong with any other.
    """

    def __init__(self, url, texts, want, clients=8, keep_alive=True):
        self.url = url
        self.texts = texts
        self.want = want
        self.answered = 0
        self.refused = 0
        self.lost = []
        self._keep_alive = keep_alive
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(i,), daemon=True) for i in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number):
        limits = httpx.Limits(max_keepalive_connections=1 if self._keep_alive else 0)
        with httpx.Client(timeout=60, limits=limits) as client:
            at = number
            while not self._over.is_set():
                at += 1
                i = at % len(self.texts)
                try:
                    answer = client.post(f"{self.url}/embed", json={"inputs": self.texts[i]})
                except httpx.ConnectError:
                    with self._lock:
                        self.refused += 1
                    return
                except httpx.HTTPError as error:
                    with self._lock:
                        self.lost.append(repr(error))
                    return
                with self._lock:
                    if answer.status_code == 200 and abs(np.array(answer.json()[0]) - self.want[i]).max() < EXACT:
                        self.answered += 1
                    else:
                        self.lost.append(f"{answer.status_code} {answer.text[:200]}")

    def stop(self):
        self._over.set()
        self.join()

    def join(self):
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads)


@pytest.fixture(scope="module")
def texts():
    return [*sentences(40), words(2500)]


@pytest.fixture(scope="module")
def want(serving_model, texts):
    return serving_model.encode(texts)


def check_stop(process, load):
    """SIGTERM while the clients ask: what was sent is answered, and the process ends well."""
    time.sleep(1.0)
    process.process.send_signal(signal.SIGTERM)
    assert process.process.wait(60) == 0, process.text()
    load.join()
    assert not load.lost
    assert load.answered > 0
    assert "Traceback" not in process.text()


@pytest.mark.parametrize("keep_alive", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_signal_to_stop_loses_no_request(start, texts, want, keep_alive):
    process = start()
    check_stop(process, Load(process.url, texts, want, keep_alive=keep_alive))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_twenty_signals_lose_no_request(start, texts, want, number):
    process = start()
    check_stop(process, Load(process.url, texts, want, clients=16, keep_alive=number % 2 == 0))


@pytest.mark.slow
def test_the_death_of_a_worker(start, texts, want):
    """The others go on, a new one takes its place, the sessions live on, and a stop loses no request."""
    process = start("--workers", "2")
    with httpx.Client(base_url=process.url, timeout=60, limits=httpx.Limits(max_keepalive_connections=0)) as client:
        session = client.post("/sessions", json={}).json()["id"]
        client.post(f"/sessions/{session}/append", json={"text": texts[0]})
        pids = children(process.process.pid)
        assert len(pids) == 2
        load = Load(process.url, texts, want, keep_alive=False)
        time.sleep(0.5)
        os.kill(pids[0], signal.SIGKILL)
        time.sleep(2.0)
        load.stop()
        # Lost is only what the dead process had accepted.
        assert len(load.lost) <= 8
        assert all("RemoteProtocolError" in lost or "ReadError" in lost for lost in load.lost), load.lost
        assert load.answered > 20
        for _ in range(10):
            got = client.get(f"/sessions/{session}/embedding").json()["embedding"]
            assert abs(np.array(got) - want[0]).max() < EXACT
        deadline = time.monotonic() + START_SECONDS
        while len(set(children(process.process.pid)) - {pids[0]}) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(children(process.process.pid)) == 2
        counted = client.get("/metrics").text
        assert float(re.search(r'te_request_success{method="single"} (\S+)', counted).group(1)) > 20
    process.wait()
    check_stop(process, Load(process.url, texts, want, keep_alive=False))


@pytest.mark.slow
def test_several_workers_have_one_memory(start, serving_model, tmp_path):
    """What one process wrote the others find at once, nothing is lost, and the death of one leaves all of it."""
    from lam_transformers.memories import Keys, Memory, Scope

    place = str(tmp_path / "memory.db")
    with Memory(place, model=None) as memory:
        key = Keys(memory.store).add("phone", Scope("ada"))
    process = start("--workers", "2", "--memory", place)
    workers = children(process.process.pid)
    assert len(workers) == 2
    limits = httpx.Limits(max_keepalive_connections=0)

    def ask(method, path, **options):
        with httpx.Client(base_url=process.url, timeout=60, limits=limits, headers={"X-API-Key": key}) as client:
            answer = client.request(method, path, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    @contextlib.contextmanager
    def only(worker):
        """The others are held, so that this one answers."""
        others = [pid for pid in workers if pid != worker]
        for pid in others:
            os.kill(pid, signal.SIGSTOP)
        try:
            process.wait()
            yield
        finally:
            for pid in others:
                os.kill(pid, signal.SIGCONT)

    def turns(number):
        return {"messages": [{"role": "user", "content": f"The dog of turn {number}."}], "run_id": "chat"}

    for number in range(4):
        with only(workers[number % 2]):
            ask("POST", "/conversations", json=turns(number))
        with only(workers[1 - number % 2]):
            results = ask("POST", "/search", json={"query": "dog"})["results"]
            assert {one["memory"] for one in results} == {f"The dog of turn {i}." for i in range(number + 1)}
    with only(workers[0]):
        id = ask("POST", "/memories", json={"messages": "A zebra."})["results"][0]["id"]
    with only(workers[1]):
        assert id in [one["id"] for one in ask("POST", "/search", json={"query": "zebra"})["results"]]
        ask("DELETE", f"/memories/{id}")
    with only(workers[0]):
        assert id not in [one["id"] for one in ask("POST", "/search", json={"query": "zebra"})["results"]]
    threads = [
        threading.Thread(target=lambda i=i: [ask("POST", "/conversations", json=turns(f"{i}.{j}")) for j in range(5)])
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    said = ask("GET", "/conversations", params={"run_id": "chat"})["results"]
    assert [turn["position"] for turn in said] == list(range(44))
    assert len({turn["memory"] for turn in said}) == 44
    os.kill(workers[0], signal.SIGKILL)
    workers = [workers[1]]
    assert ask("GET", "/conversations/list")["results"][0]["turns"] == 44
    gist = ask("GET", "/conversations/gist", params={"run_id": "chat"})["embedding"]
    assert abs(np.array(gist) - serving_model.encode("\n\n".join(turn["memory"] for turn in said))).max() < EXACT
    process.process.send_signal(signal.SIGTERM)
    assert process.process.wait(60) == 0, process.text()
    assert "Traceback" not in process.text()
    with Memory(place, model=None) as memory:
        assert memory.verify() == []


def test_a_process_that_may_not_listen_yet_accepts_nothing(start_server):
    """A connection waits until it can be answered, and a stop meanwhile takes none away from other processes."""
    may_listen = threading.Event()
    server = start_server(may_listen=may_listen.is_set)
    with server.client() as client, ThreadPoolExecutor(1) as asking:
        answer = asking.submit(client.get, "/health")
        with pytest.raises(TimeoutError):
            answer.result(timeout=0.5)
        may_listen.set()
        assert answer.result(timeout=20).status_code == 200
    stopped = start_server(may_listen=threading.Event().is_set)
    with stopped.client() as client, ThreadPoolExecutor(1) as asking:
        answer = asking.submit(client.get, "/health")
        with pytest.raises(TimeoutError):
            answer.result(timeout=0.5)
        stopped.stop()
        with pytest.raises(httpx.TransportError):
            answer.result(timeout=20)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a filter of Linux")
def test_a_stop_lets_nobody_connect_whom_it_will_not_answer(start_server, monkeypatch):
    """Between the last connection that is accepted and the end of the port."""
    server = start_server()
    made = []
    shut_down = uvicorn.Server.shutdown

    async def connect_late(stopping, sockets=None):
        with contextlib.suppress(TimeoutError):
            made.append(socket.create_connection(server.address, timeout=0.3))
        await shut_down(stopping, sockets)

    monkeypatch.setattr(uvicorn.Server, "shutdown", connect_late)
    server.stop()
    assert not made
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(server.address, timeout=5)


def test_a_stop_reads_a_request_that_has_arrived(server):
    """An idle connection is not closed over a request that the system has and the server has not read."""

    from lam_transformers.serving.server import Protocol

    async def ask() -> bytes:
        loop = asyncio.get_running_loop()
        config = uvicorn.Config(server.app, http=Protocol, lifespan="off", log_config=None, access_log=False)
        config.load()
        connections = []

        def connection():
            connections.append(Protocol(config, uvicorn.server.ServerState(), {}))
            return connections[-1]

        async with await loop.create_server(connection, "127.0.0.1", 0) as listening:
            with socket.create_connection(listening.sockets[0].getsockname(), timeout=20) as asking:
                while not connections:
                    await asyncio.sleep(0.01)
                (asked,) = connections
                asking.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                asked._close_unread(loop.time() + 10)
                return await asyncio.to_thread(asking.recv, 100)

    assert asyncio.run(ask()).startswith(b"HTTP/1.1 200")


def children(pid: int) -> list[int]:
    """Worker processes of a server."""
    workers = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
            if any("spawn_main" in argument for argument in child.cmdline()):
                workers.append(child.pid)
    return workers


def lam_serve(*options):
    from lam_transformers.cli.app import app

    app(["serve", *options])


def run(*options):
    return run_in_child(lam_serve, *map(str, options), timeout=120)


def test_what_is_refused_at_the_start(serving_folder, tmp_path):
    """In one line, with exit status 1."""
    empty = tmp_path / "keys"
    empty.write_text("# none yet\n")
    for options, what in (
        ((serving_folder, "--host", "0.0.0.0"), "--api-key-file"),
        ((serving_folder, "--api-key-file", empty), "no API key"),
        ((serving_folder, "--api-key-file", tmp_path / "none"), "none"),
        ((serving_folder, "--host", "256.1.1.1", "--api-key-file", ROOT / "LICENSE"), "key"),
    ):
        done = run(*options)
        assert done.status == 1, done
        assert what in done.printed
        assert "Traceback" not in done.printed


def test_a_model_that_is_none(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    done = run(tmp_path, "--port", "0")
    assert done.status == 1, done
    assert "lam: " in done.printed


def test_keys_of_a_file_and_of_the_environment(tmp_path, monkeypatch):
    from lam_transformers.serving.settings import check_host, read_keys

    file = tmp_path / "keys"
    file.write_text("# of the house\nfirst\n\nsecond\nfirst\n")
    monkeypatch.setenv("LAM_API_KEYS", "third, fourth")
    assert read_keys(file) == ("third", "fourth", "first", "second")
    file.write_text("with space\n")
    with pytest.raises(ValueError, match="space"):
        read_keys(file)
    check_host("127.0.0.1", ())
    check_host("0.0.0.0", ("key",))
    with pytest.raises(ValueError, match="LAM_API_KEYS"):
        check_host("0.0.0.0", ())
