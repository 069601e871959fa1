"""What the endpoints share: the model, its threads, and the way of a request from texts to embeddings."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from fastapi import Request

from ..io.loading import load_sentence_transformer
from .engine import LAMEngine, PaddedEngine, TextReader, longest_text, make_engine
from .errors import STILL_LOADING, InvalidInput, NotReady, ServeError, TooLarge
from .memory_service import MemoryService, ServedReader
from .metrics import Metrics
from .scheduler import Job, Limits, Scheduler, Tokens
from .sessions import SessionStore
from .settings import Settings
from .turns import in_turns
from .watching import watched

logger = logging.getLogger(__name__)

Part = TypeVar("Part")

SHORT = 16_384  # characters of a request that is tokenised beside the long ones rather than after them
CALLERS = 16  # threads of sessions and late chunks, each of which waits for its turns


def _loaded(part: Part | None) -> Part:
    """A part of the service that is there once the model is; raises NotReady before."""
    if part is None:
        raise NotReady(STILL_LOADING)
    return part


@dataclass
class Embedded:
    """The answer to a request for embeddings.

    Attributes:
        embeddings: [texts, D] float32.
        tokens: of each text.
        truncated: places of the texts that were truncated.
        seconds: of tokenising, in the queue and of inference.
    """

    embeddings: np.ndarray
    tokens: list[int]
    truncated: list[int]
    seconds: tuple[float, float, float]

    def headers(self) -> dict[str, str]:
        """TEI's headers, and which texts were truncated."""
        tokenization, queue, inference = (f"{1000 * seconds:.0f}" for seconds in self.seconds)
        headers = {
            "x-compute-tokens": str(sum(self.tokens)),
            "x-compute-time": f"{1000 * sum(self.seconds):.0f}",
            "x-total-time": f"{1000 * sum(self.seconds):.0f}",
            "x-tokenization-time": tokenization,
            "x-queue-time": queue,
            "x-inference-time": inference,
        }
        if self.truncated:
            headers["x-truncated-inputs"] = ",".join(map(str, self.truncated[:100]))
        return headers


class Service:
    """One process's model and everything around it that is not HTTP.

    Args:
        settings: the options of the server.
        metrics: the numbers of this process.
    """

    def __init__(self, settings: Settings, metrics: Metrics):
        self.settings = settings
        self.metrics = metrics
        self.sessions: SessionStore | None = None
        self.started = int(time.time())
        self.draining = False  # the server has been told to stop and answers what still comes
        self.failure: BaseException | None = None
        self.paths: frozenset[str] = frozenset()  # addresses that the access log may name before they are routed
        self._memory: MemoryService | None = None
        self._model: Any = None
        self._engine: LAMEngine | PaddedEngine | None = None
        self._reader: TextReader | None = None
        self._scheduler: Scheduler | None = None
        self._short_texts = ThreadPoolExecutor(1, "lam-short-texts")
        self._long_texts = ThreadPoolExecutor(1, "lam-long-texts")
        self._callers = ThreadPoolExecutor(CALLERS, "lam-callers")

    # Start and stop

    def load(self) -> None:
        """Load the model; until it is there, every request that needs it is answered with 503."""
        import torch

        settings = self.settings
        if settings.threads:
            torch.set_num_threads(settings.threads)
        model = load_sentence_transformer(settings.model, settings.device, trust_remote_code=settings.trust_remote_code)
        engine = make_engine(model)
        self._reader = TextReader(model, longest_text(model))
        self._engine = engine
        if engine.is_lam:
            self.sessions = SessionStore(settings.session_folder, settings.sessions, settings.session_seconds)
        self._model = model
        limits = Limits(settings.request_tokens, settings.waiting_tokens)
        scheduler = Scheduler(engine, limits, on_row=self._count_row)
        # The first row of a process is slow: it is read before anybody waits for one.
        scheduler.submit([self._reader.read("The first text.")]).future.result()
        if settings.memory is not None:
            self._memory = self._open_memory(model, self._reader, scheduler)
        self._scheduler = scheduler

    def _open_memory(self, model: Any, tokens: TextReader, scheduler: Scheduler) -> MemoryService:
        if not self.is_lam:
            raise ValueError(f"--memory needs a LAM, which {self.settings.model} is not.")
        reader = ServedReader(self.settings.model, model, tokens, self.prompt(None), scheduler)
        return MemoryService(self.settings, model, reader, scheduler)

    def _count_row(self, texts: int, tokens: int) -> None:
        self.metrics.row(texts, tokens)
        self.count_waiting()

    def count_waiting(self) -> None:
        """Tell the metrics what waits now."""
        if self._scheduler is not None:
            self.metrics.waiting.set(self._scheduler.waiting_texts)
            self.metrics.waiting_tokens.set(self._scheduler.waiting_tokens)

    def stop(self) -> None:
        """Answer what was accepted and end the threads; returns when all is done."""
        for executor in (self._short_texts, self._long_texts, self._callers):
            executor.shutdown(wait=True)
        if self._memory is not None:
            self._memory.stop()
        if self._scheduler is not None:
            self._scheduler.stop()

    @property
    def ready(self) -> bool:
        return self._scheduler is not None

    @property
    def scheduler(self) -> Scheduler:
        return _loaded(self._scheduler)

    @property
    def reader(self) -> TextReader:
        return _loaded(self._reader)

    @property
    def model(self) -> Any:
        return _loaded(self._model)

    @property
    def memory(self) -> MemoryService:
        return _loaded(self._memory)

    @property
    def is_lam(self) -> bool:
        return self._engine is not None and self._engine.is_lam

    @property
    def engine(self) -> LAMEngine | PaddedEngine:
        if self._engine is None:
            raise NotReady(STILL_LOADING)
        return self._engine

    @property
    def dimensions(self) -> int:
        return int(self.model.get_embedding_dimension())

    @property
    def max_length(self) -> int:
        """Tokens that a text may have here."""
        return min(self.settings.request_tokens, self.reader.most or self.settings.request_tokens)

    # From inputs to tokens

    def prompt(self, name: str | None, param: str = "prompt_name") -> str:
        """The prompt of that name; the model's default one without a name, as `encode` does.

        Raises InvalidInput for a name that the model does not have.
        """
        prompts = self.model.prompts or {}
        name = self.model.default_prompt_name if name is None else name
        if name is None:
            return ""
        if name not in prompts:
            raise InvalidInput(f"This model has the prompts {sorted(prompts)}, none of the name given.", param)
        return prompts[name] or ""

    async def tokenize(
        self,
        inputs: str | list[str] | list[int] | list[list[int]],
        param: str,
        prompt: str = "",
        truncate: bool = False,
        from_left: bool = False,
    ) -> list[Tokens]:
        """Every text's ids, made in a thread for short requests or in one for long ones.

        Raises:
            InvalidInput: for no texts, too many, empty ones, and whatever `TextReader` refuses.
            TooLarge: for more tokens than a request may have.
        """
        texts = self._as_list(inputs, param)
        reader = self.reader
        most = self.settings.request_tokens

        def read() -> list[Tokens]:
            tokens: list[Tokens] = []
            count = 0
            for text in texts:
                if isinstance(text, str):
                    tokens.append(reader.read(text, prompt, truncate, from_left, most, param))
                else:
                    tokens.append(reader.take(text, param))
                count += len(tokens[-1])
                if count > most:
                    raise TooLarge(
                        f"The texts of `{param}` have more than {most:,} tokens, which is all this server takes in one "
                        "request; send fewer or shorter texts.",
                        param,
                    )
            return tokens

        size = sum(map(len, texts))
        executor = self._short_texts if size <= SHORT else self._long_texts
        return await asyncio.get_running_loop().run_in_executor(executor, read)

    def _as_list(self, inputs: Any, param: str) -> list[str] | list[list[int]]:
        if isinstance(inputs, str) or (inputs and isinstance(inputs[0], int)):
            inputs = [inputs]
        if not inputs:
            raise ServeError(400, "empty", f"`{param}` is empty; send one text at least.", param)
        if len(inputs) > self.settings.inputs:
            raise InvalidInput(
                f"`{param}` has {len(inputs):,} texts, this server takes {self.settings.inputs:,} in a request; send "
                "them in several.",
                param,
            )
        if any(len(text) == 0 for text in inputs):
            raise ServeError(400, "empty", f"A text of `{param}` is empty; leave it out or send some text.", param)
        return inputs

    # From tokens to embeddings

    async def embed(
        self,
        request: Request,
        inputs: str | list[str] | list[int] | list[list[int]],
        param: str = "input",
        prompt_name: str | None = None,
        truncate: bool = False,
        from_left: bool = False,
        normalize: bool | None = None,
        dimensions: int | None = None,
    ) -> Embedded:
        """The embeddings of a request's texts.

        Args:
            request: whose client is watched; when it goes, so does the work.
            inputs: a text, texts, the token ids of a text or of texts.
            param: what the request calls them.
            prompt_name: a prompt of the model, put before each text.
            truncate: cut texts that are too long rather than refuse them.
            from_left: cut them at their beginning.
            normalize: length one; None: as the model's own are.
            dimensions: leading dimensions to keep.

        Raises:
            ServeError: whatever is wrong with the request, or that it is too much now.
            Cancelled: if the client has gone.
        """
        scheduler = self.scheduler
        self.check_dimensions(dimensions)
        start = time.perf_counter()
        tokens = await self.tokenize(inputs, param, self.prompt(prompt_name), truncate, from_left)
        tokenized = time.perf_counter() - start
        job = scheduler.submit(tokens)
        embeddings = await self.answer(request, job)
        seconds = (tokenized, job.queue_seconds, job.inference_seconds)
        self._observe(tokens, seconds)
        truncated = [i for i, text in enumerate(tokens) if text.truncated]
        note(request, inputs=len(tokens), tokens=job.tokens)
        return Embedded(self.finish(embeddings, normalize, dimensions), [len(t) for t in tokens], truncated, seconds)

    def check_dimensions(self, dimensions: int | None) -> None:
        """Raises InvalidInput for more dimensions than the model has."""
        if dimensions is not None and dimensions > self.dimensions:
            raise InvalidInput(
                f"dimensions is {dimensions}, this model has {self.dimensions}; give fewer.", "dimensions"
            )

    def finish(self, embeddings: np.ndarray, normalize: bool | None, dimensions: int | None) -> np.ndarray:
        """[texts, D] as the model gives them -> truncated and normalised as `encode` would."""
        if dimensions is not None and dimensions < embeddings.shape[1]:
            embeddings = embeddings[:, :dimensions]
            normalize = self.normalised if normalize is None else normalize
        if normalize:
            lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
            embeddings = embeddings / np.maximum(lengths, 1e-12)
        return np.ascontiguousarray(embeddings, dtype=np.float32)

    @property
    def normalised(self) -> bool:
        """Whether the model's own embeddings have length one."""
        return any(type(module).__name__ == "Normalize" for module in self.model)

    async def answer(self, request: Request, job: Job) -> Any:
        """The result of a job; the job is cancelled when the client goes.

        Raises:
            Cancelled: when the client has gone.
            ServeError: if the model failed.
        """
        return await watched(request, asyncio.wrap_future(job.future), job.cancel)

    async def stream(self, inputs: str, prompt_name: str | None, truncate: bool) -> tuple[Job, asyncio.Queue]:
        """A job of one text and a queue of the numbers of tokens read so far, None at the end."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue = asyncio.Queue()
        tokens = await self.tokenize(inputs, "inputs", self.prompt(prompt_name), truncate)

        def tell(read: int | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, read)

        job = self.scheduler.submit(tokens, on_progress=tell)
        job.future.add_done_callback(lambda _: tell(None))
        return job, queue

    async def call(self, request: Request, tokens: int, function: Callable[[Any], Any]) -> Any:
        """The result of a function of the model that takes turns with the other requests.

        Args:
            request: whose client is watched.
            tokens: about how many tokens it reads.
            function: called in a thread with a model that it may use as its own.

        Raises as `embed`.
        """
        if not self.is_lam:
            raise ServeError(501, "not_supported", "Only a LAM can do this; this server runs another model.")
        scheduler = self.scheduler
        job = scheduler.open(tokens)
        running = asyncio.get_running_loop().run_in_executor(
            self._callers, in_turns, scheduler, self.model, job, function
        )
        return await watched(request, running, job.cancel)

    def count(self, text: str) -> Awaitable[int]:
        """Tokens of a text, counted in a thread."""
        executor = self._short_texts if len(text) <= SHORT else self._long_texts
        return asyncio.get_running_loop().run_in_executor(executor, self.reader.count, text)

    def _observe(self, tokens: Sequence[Tokens], seconds: tuple[float, float, float]) -> None:
        for text in tokens:
            self.metrics.length.observe(len(text))
        for histogram, value in zip(
            (self.metrics.tokenization, self.metrics.queue, self.metrics.inference), seconds, strict=True
        ):
            histogram.observe(value)


def note(request: Request, **facts: int) -> None:
    """Numbers about a request for the access log."""
    request.scope.setdefault("lam.facts", {}).update(facts)
