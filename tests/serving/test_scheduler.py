"""The scheduler alone: an engine that counts, no model and no HTTP."""

import threading
import time

import numpy as np
import pytest

from lam_transformers.serving.errors import Cancelled, NotReady, Overloaded, TooLarge
from lam_transformers.serving.scheduler import Limits, Scheduler, Tokens

BUDGET = 100
SEGMENT = 50


def tokens(length: int, value: int = 1) -> Tokens:
    return Tokens(np.full(length, value, dtype=np.int32))


class CountingReader:
    def __init__(self, engine, text):
        self.engine = engine
        self.ids = text.ids
        self.start = 0

    def step(self):
        self.engine.gate.wait()
        piece = self.ids[self.start : self.start + SEGMENT]
        self.start += len(piece)
        self.engine.log.append(("segment", len(piece)))
        return len(piece)

    def result(self):
        return None if self.start < len(self.ids) else np.array([self.ids.sum()], dtype=np.float32)


class CountingEngine:
    """The embedding of a text is the sum of its ids; `gate` holds the model back until it is set."""

    def __init__(self):
        self.log = []
        self.gate = threading.Event()
        self.gate.set()
        self.poison = None

    def is_long(self, text):
        return len(text) > BUDGET

    def fits(self, row, text):
        return sum(map(len, row)) + len(text) <= BUDGET

    def run_row(self, row):
        self.gate.wait()
        self.log.append(("row", [len(text) for text in row]))
        if any(text.ids[0] == self.poison for text in row):
            raise RuntimeError("The model met a text that it cannot read.")
        return np.array([[text.ids.sum()] for text in row], dtype=np.float32)

    def reader(self, text):
        return CountingReader(self, text)


@pytest.fixture
def engine():
    return CountingEngine()


@pytest.fixture
def scheduler(engine):
    scheduler = Scheduler(engine, Limits(request_tokens=2000, waiting_tokens=1000))
    yield scheduler
    engine.gate.set()
    assert scheduler.stop(10)


def held(engine, scheduler):
    """Holds the model back in a row of one token, so that all that is submitted next has to wait."""
    engine.gate.clear()
    job = scheduler.submit([tokens(1)])
    deadline = time.monotonic() + 5
    while scheduler.waiting_texts and time.monotonic() < deadline:
        time.sleep(0.001)
    return job


def test_texts_of_a_job_come_back_in_their_order(scheduler):
    job = scheduler.submit([tokens(3, 7), tokens(120, 2), tokens(1, 5)])
    assert job.future.result(5).tolist() == [[21.0], [240.0], [5.0]]
    assert job.read == job.tokens == 124
    assert job.queue_seconds >= 0
    assert job.inference_seconds >= 0


def test_waiting_texts_are_packed_first_come_first_served(engine, scheduler):
    held(engine, scheduler)
    jobs = [scheduler.submit([tokens(length)]) for length in (40, 50, 20, 10, 90)]
    engine.gate.set()
    for job in jobs:
        job.future.result(5)
    assert engine.log == [("row", [1]), ("row", [40, 50]), ("row", [20, 10]), ("row", [90])]


def test_short_texts_go_through_between_the_segments_of_a_long_one(engine, scheduler):
    held(engine, scheduler)
    long = scheduler.submit([tokens(300)])
    jobs = [scheduler.submit([tokens(90)]) for _ in range(3)]
    engine.gate.set()
    long.future.result(5)
    for job in jobs:
        job.future.result(5)
    kinds = [kind for kind, _ in engine.log[1:7]]
    assert kinds == ["segment", "row", "segment", "row", "segment", "row"]


def test_long_texts_take_turns(engine, scheduler):
    held(engine, scheduler)
    first = scheduler.submit([tokens(800)])
    second = scheduler.submit([tokens(150)])
    order = []
    first.future.add_done_callback(lambda _: order.append("first"))
    second.future.add_done_callback(lambda _: order.append("second"))
    engine.gate.set()
    assert first.future.result(5).tolist() == [[800.0]]
    assert order == ["second", "first"]


def test_a_job_of_many_short_texts_takes_turns_too(engine, scheduler):
    held(engine, scheduler)
    many = scheduler.submit([tokens(50, i) for i in range(1, 11)])
    one = scheduler.submit([tokens(5)])
    engine.gate.set()
    assert many.future.result(5)[:, 0].tolist() == [50.0 * i for i in range(1, 11)]
    one.future.result(5)
    assert engine.log.index(("row", [5])) <= 2


def test_cancelled_jobs_are_dropped(engine, scheduler):
    held(engine, scheduler)
    short = scheduler.submit([tokens(30)])
    long = scheduler.submit([tokens(500)])
    last = scheduler.submit([tokens(20)])
    short.cancel()
    long.cancel()
    engine.gate.set()
    last.future.result(5)
    with pytest.raises(Cancelled):
        short.future.result(5)
    assert engine.log == [("row", [1]), ("row", [20])]
    assert scheduler.waiting_tokens == 0


def test_a_long_text_is_dropped_between_two_segments(engine, scheduler):
    def stop_early(read):
        if read >= 100:
            job.cancel()

    engine.gate.clear()
    job = scheduler.submit([tokens(500)], on_progress=stop_early)
    engine.gate.set()
    with pytest.raises(Cancelled):
        job.future.result(5)
    scheduler.submit([tokens(1)]).future.result(5)
    assert engine.log.count(("segment", 50)) == 2


def test_limits(engine, scheduler):
    with pytest.raises(TooLarge, match="2,001 tokens"):
        scheduler.submit([tokens(2001)])
    held(engine, scheduler)
    scheduler.submit([tokens(900)])
    with pytest.raises(Overloaded) as refused:
        scheduler.submit([tokens(101)])
    assert refused.value.retry_after >= 1
    # What was refused left nothing behind.
    assert scheduler.waiting_tokens == 900
    scheduler.submit([tokens(99)])


def test_a_large_job_is_accepted_when_nothing_waits(scheduler):
    assert scheduler.submit([tokens(1500)]).future.result(5).tolist() == [[1500.0]]


def test_a_text_that_the_model_fails_on_fails_alone(engine, scheduler):
    engine.poison = 13
    held(engine, scheduler)
    good = scheduler.submit([tokens(10)])
    bad = scheduler.submit([tokens(10, 13)])
    engine.gate.set()
    assert good.future.result(5).tolist() == [[10.0]]
    with pytest.raises(RuntimeError, match="cannot read"):
        bad.future.result(5)
    assert scheduler.submit([tokens(2)]).future.result(5).tolist() == [[2.0]]


def test_nan_is_no_answer(engine, scheduler, monkeypatch):
    monkeypatch.setattr(engine, "run_row", lambda row: np.full((len(row), 1), np.nan, dtype=np.float32))
    with pytest.raises(FloatingPointError):
        scheduler.submit([tokens(2)]).future.result(5)


def test_stop_computes_what_was_accepted_and_refuses_the_rest(engine):
    scheduler = Scheduler(engine)
    held(engine, scheduler)
    jobs = [scheduler.submit([tokens(60)]), scheduler.submit([tokens(700)])]
    stopper = threading.Thread(target=scheduler.stop)
    stopper.start()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            jobs.append(scheduler.submit([tokens(1)]))
        except NotReady:
            break
    else:
        pytest.fail("A stopping scheduler goes on accepting.")
    engine.gate.set()
    stopper.join(5)
    assert not stopper.is_alive()
    assert all(job.future.result(0) is not None for job in jobs)


def test_calls_of_another_thread_take_turns(engine, scheduler):
    held(engine, scheduler)
    job = scheduler.open(300)
    assert scheduler.waiting_tokens == 300
    results = []

    def work():
        for i in range(3):
            results.append(scheduler.call(job, 100, lambda i=i: engine.log.append(("call", i)) or i))
        job.succeed(None)
        scheduler.close(job)

    thread = threading.Thread(target=work)
    thread.start()
    engine.gate.set()
    thread.join(5)
    assert results == [0, 1, 2]
    assert job.read == 300
    assert scheduler.waiting_tokens == 0


def test_an_error_in_a_call_reaches_its_own_thread(scheduler):
    job = scheduler.open(1)
    with pytest.raises(ZeroDivisionError):
        scheduler.call(job, 1, lambda: 1 / 0)
    job.cancel()
    with pytest.raises(Cancelled):
        scheduler.call(job, 1, lambda: 1)
    scheduler.close(job)


def test_many_clients_at_once(scheduler, engine):
    """Every one of 40 threads gets the sums of its own texts."""
    wrong = []

    def client(number):
        for i in range(25):
            want = float(number * 100 + i)
            got = scheduler.submit([tokens(1, number * 100 + i), tokens(120 if i % 5 == 0 else 2, 1)])
            result = got.future.result(10)
            if result[0, 0] != want:
                wrong.append((want, result))

    scheduler.limits = Limits(10**9, 10**9)
    threads = [threading.Thread(target=client, args=(n,)) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not wrong
    assert scheduler.waiting_tokens == 0
