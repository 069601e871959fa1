"""Which text the model reads next.

One thread owns the model; nobody else calls it. Work reaches the thread through `Scheduler.submit`, already tokenised,
so that load is counted in what it costs: tokens.

How the thread chooses
    Work is of two sorts. A *text* fits into one row of the model's token budget. A *turn taker* needs the model several
    times: a text that is longer than the row is read one segment after the other, and between two segments its state is
    parked in the turn taker; a request with more short texts than a row holds reads them one row after the other; a
    session or a pass for late chunks calls the model one segment after the other from a thread of its own.

    Waiting texts are packed into rows, first come first served: texts of any number of requests are read in one row, in
    the order of their arrival, up to the budget. The thread alternates: one row of texts if any text waits, then one
    turn of a turn taker if there is one, and turn takers take their turns in rotation. So a short request never waits
    for more than the row or turn that runs when it comes, the rows of texts that came before it, and one turn between
    two such rows; and a long text never waits for more than one row between two of its turns. Neither starves.

What is promised
    The embedding of a text does not depend on what else is read: a packed row gives every text its own result, and a
    parked state is that text's alone. It equals `SentenceTransformer.encode` to 1e-6.
    A job is answered as a whole, once: with all its embeddings, with one exception, or not at all after `Job.cancel`.
    Texts of cancelled jobs are dropped when they reach the front, and a cancelled turn taker before its next turn.
    `submit` refuses (`TooLarge`, `Overloaded`) before anything is queued: a job is accepted whole or not at all.
    After `stop` nothing is accepted, what was accepted is computed, and then the thread ends.

What waits is bounded by `Limits.waiting_tokens`: tokens that were accepted and not yet read. A job that alone has more
than that is accepted when nothing else waits, if it is within `Limits.request_tokens`.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .errors import Cancelled, NotReady, Overloaded, TooLarge

logger = logging.getLogger(__name__)

LONGEST_RETRY = 120  # seconds that a refused client is asked to wait at most


@dataclass(frozen=True)
class Limits:
    """What the scheduler accepts.

    Attributes:
        request_tokens: tokens of one job.
        waiting_tokens: tokens that were accepted and not yet read, of all jobs.
    """

    request_tokens: int = 4_000_000
    waiting_tokens: int = 8_000_000


@dataclass(frozen=True)
class Tokens:
    """The token ids of one text, special tokens included.

    Attributes:
        ids: [T] int32.
        prompt_length: tokens at the start of the text that the model reads and does not pool; 0 for most models.
        truncated: whether the text had more tokens than these.
    """

    ids: np.ndarray
    prompt_length: int = 0
    truncated: bool = False

    def __len__(self) -> int:
        return len(self.ids)


class Reader(Protocol):
    """A text that is read one segment at a time."""

    def step(self) -> int:
        """Read one segment; the number of tokens that were read."""
        ...

    def result(self) -> np.ndarray | None:
        """[D] float32 when the text has been read to its end, None before."""
        ...


class Engine(Protocol):
    """A model as the scheduler sees it."""

    def is_long(self, tokens: Tokens) -> bool:
        """Whether the text is read in segments rather than in a row."""
        ...

    def fits(self, row: Sequence[Tokens], tokens: Tokens) -> bool:
        """Whether a text may join the texts of a row."""
        ...

    def run_row(self, row: Sequence[Tokens]) -> np.ndarray:
        """[texts, D] float32: the embeddings of the texts of one row."""
        ...

    def reader(self, tokens: Tokens) -> Reader:
        """A reader at the start of a long text."""
        ...


class Job:
    """What one request asked for: the embeddings of its texts, or the result of a function that calls the model.

    Attributes:
        future: the result, [texts, D] float32 for texts.
        tokens: tokens of the whole job, as far as they are known when it is submitted.
        read: tokens that were read so far.
        submitted, started, finished: `time.perf_counter()` of these moments; started is that of the first row.
    """

    def __init__(self, tokens: int, on_progress: Callable[[int], None] | None = None):
        self.future: Future = Future()
        self.tokens = tokens
        self.read = 0
        self.submitted = time.perf_counter()
        self.started: float | None = None
        self.finished: float | None = None
        self._on_progress = on_progress
        self._cancelled = threading.Event()
        self._rows: list[np.ndarray | None] = []
        self._missing = 0
        self._done = threading.Lock()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Nobody waits for the answer any more; may be called from any thread, and after the end."""
        self._cancelled.set()
        self.fail(Cancelled("The request was cancelled."))

    @property
    def queue_seconds(self) -> float:
        """From the admission to the first row."""
        return (self.started or time.perf_counter()) - self.submitted

    @property
    def inference_seconds(self) -> float:
        """From the first row to the result."""
        return 0.0 if self.started is None else (self.finished or time.perf_counter()) - self.started

    def fail(self, error: BaseException) -> None:
        with self._done:
            if not self.future.done():
                self.finished = time.perf_counter()
                self.future.set_exception(error)

    def succeed(self, result: Any) -> None:
        with self._done:
            if not self.future.done():
                self.finished = time.perf_counter()
                self.future.set_result(result)

    def begin(self) -> None:
        if self.started is None:
            self.started = time.perf_counter()

    def expect(self, count: int) -> None:
        """The job is done when `count` embeddings have been put."""
        self._rows = [None] * count
        self._missing = count

    def put(self, place: int, embedding: np.ndarray) -> None:
        self._rows[place] = embedding
        self._missing -= 1
        if not self._missing:
            self.succeed(np.stack([row for row in self._rows if row is not None]))

    def advance(self, tokens: int) -> None:
        self.read += tokens
        if self._on_progress is not None and not self.cancelled:
            self._on_progress(self.read)


@dataclass
class _Text:
    """One short text of a job and its place in the answer."""

    job: Job
    place: int
    tokens: Tokens


class _Turns(Protocol):
    """Work that needs the model several times."""

    job: Job

    def left(self) -> int:
        """Tokens that are still to be read."""
        ...

    def step(self) -> bool:
        """Use the model once; whether another turn is needed."""
        ...


class _LongText:
    """A long text: one segment a turn, its state parked in the reader in between."""

    def __init__(self, job: Job, place: int, tokens: Tokens, engine: Engine):
        self.job = job
        self._place = place
        self._tokens: Tokens | None = tokens
        self._engine = engine
        self._reader: Reader | None = None
        self._left = len(tokens)

    def left(self) -> int:
        return self._left

    def step(self) -> bool:
        if self._reader is None:
            assert self._tokens is not None
            self._reader = self._engine.reader(self._tokens)
            self._tokens = None
        count = self._reader.step()
        self._left -= count
        self.job.advance(count)
        embedding = self._reader.result()
        if embedding is None:
            return True
        self.job.put(self._place, embedding)
        return False


class _ManyTexts:
    """The short texts of a job that has more of them than a row holds: one row a turn."""

    def __init__(self, job: Job, texts: list[_Text], engine: Engine):
        self.job = job
        # Texts of like lengths in one row cost less where rows are padded, and nothing where they are packed.
        self._texts = _Texts(sorted(texts, key=lambda text: len(text.tokens), reverse=True))
        self._engine = engine

    def left(self) -> int:
        return self._texts.tokens

    def step(self) -> bool:
        _read_row(self._texts.take_row(self._engine), self._engine)
        return bool(len(self._texts))


class _Function:
    """A function that takes one turn."""

    def __init__(self, job: Job, function: Callable[[], Any]):
        self.job = job
        self._function = function

    def left(self) -> int:
        return self.job.tokens

    def step(self) -> bool:
        result = self._function()
        self.job.advance(self.job.tokens)
        self.job.succeed(result)
        return False


class Call:
    """One use of the model by a function that runs in another thread; the scheduler's thread carries it out."""

    def __init__(self, job: Job, tokens: int, function: Callable[[], Any]):
        self.job = job
        self._tokens = tokens
        self._function = function
        self.future: Future = Future()

    def left(self) -> int:
        return 0  # the tokens of such a job are counted by the job itself, from its submission on

    def step(self) -> bool:
        try:
            result = self._function()
        except Exception as error:  # the function's own thread has to see it, whatever it is
            self.future.set_exception(error)
        else:
            self.job.advance(self._tokens)
            self.future.set_result(result)
        return False

    def drop(self) -> None:
        self.future.set_exception(Cancelled("The request was cancelled."))


class _Texts:
    """Waiting texts in the order of their arrival.

    Attributes:
        tokens: of all that wait.
    """

    def __init__(self, texts: Iterable[_Text] = ()):
        self._waiting: deque[_Text] = deque()
        self.tokens = 0
        self.extend(texts)

    def __len__(self) -> int:
        return len(self._waiting)

    def extend(self, texts: Iterable[_Text]) -> None:
        for text in texts:
            self._waiting.append(text)
            self.tokens += len(text.tokens)

    def _pop(self) -> _Text:
        text = self._waiting.popleft()
        self.tokens -= len(text.tokens)
        return text

    def take_row(self, engine: Engine) -> list[_Text]:
        """The first texts that fit into a row; those of jobs that have ended are dropped."""
        row: list[_Text] = []
        tokens: list[Tokens] = []
        while self._waiting:
            first = self._waiting[0]
            if first.job.future.done():
                self._pop()
            elif not row or engine.fits(tokens, first.tokens):
                row.append(self._pop())
                tokens.append(first.tokens)
            else:
                break
        return row


def _read_row(row: list[_Text], engine: Engine) -> None:
    """Read one row and hand every text its embedding; a text that the model fails on fails its own job only."""
    for text in row:
        text.job.begin()
    try:
        embeddings = engine.run_row([text.tokens for text in row])
    except Exception as error:
        if len(row) > 1:
            for text in row:
                _read_row([text], engine)
            return
        row[0].job.fail(error)
        logger.exception("The model failed on a text of %d tokens.", len(row[0].tokens))
        return
    for text, embedding in zip(row, embeddings, strict=True):
        text.job.advance(len(text.tokens))
        if np.isfinite(embedding).all():
            text.job.put(text.place, embedding)
        else:
            text.job.fail(FloatingPointError("The embedding is not finite."))


class Scheduler:
    """Owns the model and the thread that runs it.

    Args:
        engine: the model.
        limits: what is accepted.
        on_row: called with the number of texts and of tokens of every row and turn, for the metrics.
    """

    def __init__(self, engine: Engine, limits: Limits | None = None, on_row: Callable[[int, int], None] | None = None):
        self.engine = engine
        self.limits = Limits() if limits is None else limits
        self._on_row = on_row
        self._changed = threading.Condition()
        self._texts = _Texts()
        self._turns: deque[_Turns] = deque()
        self._calling: set[Job] = set()  # jobs of other threads that use the model by calls
        self._stopping = False
        self._turn_is_next = False
        self._rate = 0.0  # tokens a second, a running mean over the last rows
        self._thread = threading.Thread(target=self._run, name="lam-model", daemon=True)
        self._thread.start()

    # For other threads

    def submit(self, texts: Sequence[Tokens], on_progress: Callable[[int], None] | None = None) -> Job:
        """Accept the texts of one request, whole or not at all.

        Args:
            texts: one at least, each with one token at least.
            on_progress: called by the model's thread with the number of tokens read so far, after each row.

        Raises:
            TooLarge: if the texts have more tokens than `limits.request_tokens`.
            Overloaded: if more tokens would wait than `limits.waiting_tokens`.
            NotReady: after `stop`.
        """
        job = Job(sum(map(len, texts)), on_progress)
        job.expect(len(texts))
        short = [_Text(job, i, tokens) for i, tokens in enumerate(texts) if not self.engine.is_long(tokens)]
        long = [(i, tokens) for i, tokens in enumerate(texts) if self.engine.is_long(tokens)]
        with self._changed:
            self._admit(job)
            if not self._is_one_row(short):
                self._turns.append(_ManyTexts(job, short, self.engine))
            else:
                self._texts.extend(short)
            self._turns.extend(_LongText(job, i, tokens, self.engine) for i, tokens in long)
            self._changed.notify()
        return job

    def submit_function(self, tokens: int, function: Callable[[], Any]) -> Job:
        """Accept a function that the model's thread runs in one turn; its result is the job's.

        Raises as `submit`.
        """
        job = Job(tokens)
        with self._changed:
            self._admit(job)
            self._turns.append(_Function(job, function))
            self._changed.notify()
        return job

    def open(self, tokens: int, on_progress: Callable[[int], None] | None = None) -> Job:
        """Accept a job that a thread of the caller's carries out by `call`; the caller ends it with `close`.

        Raises as `submit`.
        """
        job = Job(tokens, on_progress)
        with self._changed:
            self._admit(job)
            self._calling.add(job)
        return job

    def call(self, job: Job, tokens: int, function: Callable[[], Any]) -> Any:
        """Run `function` on the model's thread in a turn of its own and return its result.

        Raises Cancelled if the job was cancelled, and what the function raises.
        """
        call = Call(job, tokens, function)
        with self._changed:
            if job.cancelled or not self._thread.is_alive():
                raise Cancelled("The request was cancelled.")
            self._turns.append(call)
            self._changed.notify()
        return call.future.result()

    def close(self, job: Job) -> None:
        """The job of `open` needs the model no more."""
        with self._changed:
            self._calling.discard(job)
            self._changed.notify()

    @property
    def waiting_tokens(self) -> int:
        """Tokens that were accepted and not yet read."""
        with self._changed:
            return self._waiting()

    @property
    def waiting_texts(self) -> int:
        """Texts and turn takers that wait."""
        with self._changed:
            return len(self._texts) + len(self._turns)

    def retry_after(self) -> int:
        """Seconds after which what waits now will have been read, at the present speed."""
        with self._changed:
            return self._retry_after()

    def stop(self, timeout: float | None = None) -> bool:
        """Accept nothing more, compute what was accepted, end the thread; whether it ended within `timeout` seconds."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # Under the lock

    def _admit(self, job: Job) -> None:
        if self._stopping:
            raise NotReady("The server is stopping; ask another one, or again when it has started.")
        if job.tokens > self.limits.request_tokens:
            raise TooLarge(
                f"The request has {job.tokens:,} tokens, this server takes at most {self.limits.request_tokens:,} in "
                "one request; send fewer or shorter texts."
            )
        waiting = self._waiting()
        if waiting and waiting + job.tokens > self.limits.waiting_tokens:
            seconds = self._retry_after()
            raise Overloaded(
                f"{waiting:,} tokens are waiting, {job.tokens:,} more would be above the limit of "
                f"{self.limits.waiting_tokens:,}; try again after {seconds} seconds.",
                seconds,
            )

    def _waiting(self) -> int:
        turns = sum(turn.left() for turn in self._turns if not turn.job.future.done())
        return self._texts.tokens + turns + sum(max(job.tokens - job.read, 0) for job in self._calling)

    def _retry_after(self) -> int:
        return min(max(1, math.ceil(self._waiting() / self._rate)), LONGEST_RETRY) if self._rate else 1

    def _is_one_row(self, texts: list[_Text]) -> bool:
        row: list[Tokens] = []
        for text in texts:
            if row and not self.engine.fits(row, text.tokens):
                return False
            row.append(text.tokens)
        return True

    # The thread of the model

    def _run(self) -> None:
        while (work := self._next()) is not None:
            started = time.perf_counter()
            before = sum(job.read for job in work.jobs)
            try:
                work.run()
            except Exception as error:  # one bad row must not end the thread
                logger.exception("The model failed on a row of %d texts.", len(work.jobs))
                for job in work.jobs:
                    job.fail(error)
            tokens = sum(job.read for job in work.jobs) - before
            self._measure(tokens, time.perf_counter() - started)
            if self._on_row is not None and tokens:
                self._on_row(work.texts, tokens)

    def _measure(self, tokens: int, seconds: float) -> None:
        if tokens:
            rate = tokens / max(seconds, 1e-6)
            self._rate = rate if not self._rate else 0.9 * self._rate + 0.1 * rate

    def _next(self) -> "_Work | None":
        """The next row or turn; None when the server stops and nothing is left."""
        with self._changed:
            while True:
                self._drop_cancelled()
                row_first = not self._turns or not self._turn_is_next
                if len(self._texts) and row_first:
                    self._turn_is_next = True
                    row = self._texts.take_row(self.engine)
                    if row:
                        return _Row(row, self.engine)
                elif self._turns:
                    self._turn_is_next = False
                    return _Turn(self._turns.popleft(), self._put_back)
                elif self._stopping and not self._calling:
                    return None
                else:
                    self._changed.wait()

    def _drop_cancelled(self) -> None:
        """Turn takers whose job has ended give up their place; calls tell their thread."""
        if any(turn.job.future.done() for turn in self._turns):
            ended = [turn for turn in self._turns if turn.job.future.done()]
            self._turns = deque(turn for turn in self._turns if not turn.job.future.done())
            for turn in ended:
                if isinstance(turn, Call):
                    turn.drop()

    def _put_back(self, turn: _Turns) -> None:
        with self._changed:
            self._turns.append(turn)


class _Work(Protocol):
    jobs: list[Job]
    texts: int

    def run(self) -> None: ...


class _Row:
    """One row of short texts."""

    def __init__(self, row: list[_Text], engine: Engine):
        self.jobs = list({id(text.job): text.job for text in row}.values())
        self.texts = len(row)
        self._row = row
        self._engine = engine

    def run(self) -> None:
        _read_row(self._row, self._engine)


class _Turn:
    """One turn of a turn taker."""

    def __init__(self, turn: _Turns, put_back: Callable[[_Turns], None]):
        self.jobs = [turn.job]
        self.texts = 1
        self._turn = turn
        self._put_back = put_back

    def run(self) -> None:
        self._turn.job.begin()
        if self._turn.step():
            self._put_back(self._turn)
