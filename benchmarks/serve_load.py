"""`lam serve` under load, beside `encode` in process and beside a plain endpoint that calls `encode` for each request.

    python benchmarks/serve_load.py LAM-base-v1 --data DIR [--seconds 20] [--long-tokens 1000000]
    python benchmarks/serve_load.py LAM-base-v1 --data DIR --only-memory --requests 100000 --out serve_memory.json

All of it on this machine, over the loopback address, bounded in time and number of requests. Measured, in turns on the
same processors:

1. texts a second at saturation, 64 clients with 8 natural sentences in a request, and `encode` of the same sentences in
   process with the same number of threads;
2. p50 and p99 of a request with one sentence, at 1, 8 and 64 clients;
3. the same against a plain FastAPI endpoint that calls `encode` of all-MiniLM-L6-v2 for each request;
4. p50 of a request with one sentence while a text of `--long-tokens` tokens is read, in segments' time;
5. the resident memory of the server over `--requests` requests of mixed lengths, from 8 clients. Of 1,000 texts 900 are
   of one sentence, 80 of 5, 18 of 50 and 2 of 200, which is several segments.

The sentences are 512 of STS-B in DIR/sts.
"""

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from measuring import natural_sentences

from lam_transformers.io.loading import load_sentence_transformer
from lam_transformers.io.results import write_result

PLAIN = """
import sys
import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from lam_transformers.io.loading import load_sentence_transformer
torch.set_num_threads(int(sys.argv[2]))
model = load_sentence_transformer("all-MiniLM-L6-v2", device="cpu")
class Body(BaseModel):
    inputs: str | list[str]
app = FastAPI()
@app.post("/embed")
def embed(body: Body) -> list[list[float]]:
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    return model.encode(texts, show_progress_bar=False).tolist()
@app.get("/health")
def health() -> None:
    return None
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", access_log=False)
"""


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(command: list[str], port: int):
    """A server process, once it answers; its process id."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 180
        while True:
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command} does not answer.")
            time.sleep(0.1)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def lam_server(model: str, port: int, threads: int) -> list[str]:
    options = ["--port", str(port), "--threads", str(threads)]
    return [sys.executable, "-m", "lam_transformers.cli", "serve", model, *options]


def _clients(port, bodies, count, seconds, most, results):
    """A process of clients: each asks, waits for the answer, asks again."""
    times = []
    over = time.monotonic() + seconds

    def ask(number):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        at = number
        asked = 0
        while time.monotonic() < over and asked < most:
            body = bodies[at % len(bodies)]
            at += count
            asked += 1
            start = time.perf_counter()
            connection.request("POST", "/embed", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise RuntimeError(f"The server answered {answer.status}.")
            times.append(time.perf_counter() - start)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(count)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put((times, time.perf_counter() - start))


def load(port: int, texts: list, clients: int, seconds: float, most: int = 10**9) -> dict:
    """Requests a second and their times, in milliseconds; the clients are a process of their own."""
    bodies = [json.dumps({"inputs": text}) for text in texts]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_clients, args=(port, bodies, clients, seconds, most, results))
    process.start()
    times, took = results.get()
    process.join()
    times.sort()
    return {
        "clients": clients,
        "requests": len(times),
        "requests_a_second": round(len(times) / took, 2),
        "p50_ms": round(1000 * times[len(times) // 2], 2),
        "p99_ms": round(1000 * times[min(int(0.99 * len(times)), len(times) - 1)], 2),
    }


def in_process(model, sentences: list[str], seconds: float) -> float:
    """Texts a second of `encode`, called with all sentences again and again."""
    count = 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        model.encode(sentences)
        count += len(sentences)
    return count / (time.perf_counter() - start)


def memory(pid: int) -> float:
    """Resident megabytes of a process."""
    kilobytes = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
    return int(kilobytes.group(1)) / 1024 if kilobytes else 0.0


def beside_a_long_text(port: int, sentences: list[str], tokens: int, seconds: float) -> dict:
    """p50 of short requests, idle and while a long text is read, and the time of one segment."""
    idle = load(port, sentences, 1, seconds)
    text = "word " * tokens
    read: list[tuple[float, int]] = []
    over = threading.Event()

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3600)
        connection.request("POST", "/embed-stream", json.dumps({"inputs": text}))
        answer = connection.getresponse()
        while (line := answer.readline()) and not over.is_set():
            if line.startswith(b'data: {"tokens_read"'):
                read.append((time.perf_counter(), json.loads(line[6:])["tokens_read"]))
        connection.close()

    thread = threading.Thread(target=ask)
    thread.start()
    while len(read) < 5:
        time.sleep(0.05)
    alone = (read[4][0] - read[0][0]) / 4
    busy = load(port, sentences, 1, seconds)
    progress = read[-1][1]
    over.set()
    thread.join()
    return {
        "long_text_tokens": tokens,
        "tokens_read_meanwhile": progress,
        "segment_ms": round(1000 * alone, 1),
        "idle": idle,
        "busy": busy,
        "p50_rise_in_segments": round((busy["p50_ms"] - idle["p50_ms"]) / (1000 * alone), 2),
    }


def mixed_lengths(sentences: list[str]) -> list[str]:
    """1,000 texts of 1, 5, 50 and 200 sentences."""
    chance = random.Random(0)
    lengths = [1] * 900 + [5] * 80 + [50] * 18 + [200] * 2
    chance.shuffle(lengths)
    return [" ".join(chance.choices(sentences, k=length)) for length in lengths]


def over_many_requests(port: int, pid: int, sentences: list[str], requests: int) -> dict:
    """Resident memory of the server after each twentieth of the requests; the first tenth warms it up."""
    texts = mixed_lengths(sentences)
    answered = 0
    sizes = []
    start = time.perf_counter()
    for _ in range(20):
        answered += load(port, texts, 8, 600, requests // 160)["requests"]
        sizes.append(round(memory(pid), 1))
        print(answered, sizes[-1], flush=True)
    warm = sizes[1:]
    return {
        "requests_answered": answered,
        "seconds": round(time.perf_counter() - start, 1),
        "megabytes_after_each_twentieth": sizes,
        "largest_over_smallest_after_the_first_tenth": round(max(warm) / min(warm), 4),
        "last_over_that_after_the_first_tenth": round(warm[-1] / warm[0], 4),
    }


def rounds(model: str, port: int, threads: int, sentences: list[str], seconds: float, count: int) -> list[dict]:
    """Throughput and times of the server, of `encode` in process and of the plain endpoint, in turns."""
    import torch

    torch.set_num_threads(threads)
    batches = [sentences[i : i + 8] for i in range(0, len(sentences), 8)]
    ours = load_sentence_transformer(model, device="cpu")
    plain_port = free_port()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "plain.py"
        script.write_text(PLAIN, encoding="utf-8")
        with running([sys.executable, str(script), str(plain_port), str(threads)], plain_port):
            for _ in range(count):
                row: dict = {"encode_texts_a_second": round(in_process(ours, sentences, seconds), 1)}
                saturated = load(port, batches, 64, seconds)
                row["server_texts_a_second"] = round(8 * saturated["requests_a_second"], 1)
                row["server_over_encode"] = round(row["server_texts_a_second"] / row["encode_texts_a_second"], 3)
                row["lam"] = [load(port, sentences, clients, seconds) for clients in (1, 8, 64)]
                row["plain_minilm"] = [load(plain_port, sentences, clients, seconds) for clients in (1, 8, 64)]
                pair = [row[name][-1]["requests_a_second"] for name in ("lam", "plain_minilm")]
                row["lam_over_plain_at_64"] = round(pair[0] / pair[1], 2)
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement; at most 120")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--long-tokens", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=2000, help="of mixed lengths, for the memory; at most 100,000")
    parser.add_argument("--only-memory", action="store_true", help="measure nothing but the memory")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serve_load.json"))
    arguments = parser.parse_args()
    # All sides get the same texts, however many they manage: later sentences of STS-B are longer.
    sentences = natural_sentences(arguments.data)[:512]
    seconds = min(arguments.seconds, 120.0)
    numbers: dict = {"threads": arguments.threads}
    port = free_port()
    with running(lam_server(arguments.model, port, arguments.threads), port) as pid:
        if not arguments.only_memory:
            numbers["seconds"] = seconds
            numbers["rounds"] = rounds(arguments.model, port, arguments.threads, sentences, seconds, arguments.rounds)
            numbers["long"] = beside_a_long_text(port, sentences, arguments.long_tokens, seconds)
            print(json.dumps(numbers["long"]), flush=True)
        numbers["memory"] = over_many_requests(port, pid, sentences, min(arguments.requests, 100_000))
        print(json.dumps(numbers["memory"]), flush=True)
    for name in ("server_over_encode", "lam_over_plain_at_64") if "rounds" in numbers else ():
        numbers[f"median_{name}"] = statistics.median(row[name] for row in numbers["rounds"])
    write_result(arguments.out, numbers)


if __name__ == "__main__":
    main()
