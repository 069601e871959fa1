"""A memory that a server shares with its clients: who sees what of it, and how the server's model reads for it.

Every request works on the part of the memory that its key opens (`Memory.within`), never on the memory itself. Requests
run in threads; each use of the model waits for its turn as those of sessions do, so that neither a long document nor a
search holds up the others.
"""

import asyncio
import contextlib
import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
from fastapi import Request

from ..memories import (
    Keys,
    Memory,
    MemoryFileDamaged,
    MemoryFileRefused,
    MemoryUnavailable,
    Ranking,
    Scope,
    ScopedMemory,
    UnknownMemory,
)
from ..memories.reading import Reader
from .engine import TextReader
from .errors import Cancelled, InvalidInput, ServeError
from .scheduler import Scheduler, Tokens
from .settings import LOOPBACK, Settings
from .turns import SharedModel, in_turns
from .watching import watched

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

PATHS = ("memories", "search", "documents", "conversations")  # first parts of the addresses that a memory's key opens
NAMES = ("user_id", "agent_id", "run_id")
READERS = 8  # threads of requests that look something up
WRITERS = 16  # threads of requests that change something, most of which wait for their turns of the model
STRENGTHS = 0.05  # what a memory of full strength gains, where strengths are kept
NEEDS_KEY = (
    "This memory needs a key of its own, which `lam memory keys add` makes; send it in the header "
    "'Authorization: Bearer KEY' or 'X-API-Key: KEY'."
)


def is_memory_path(path: str) -> bool:
    """Whether an address is one of a memory's endpoints."""
    return path.lstrip("/").partition("/")[0] in PATHS


def check_memory(settings: Settings, host: str) -> str | None:
    """Look at the memory before the server starts; what whoever starts it should know of its keys, or None.

    Raises:
        ValueError: for options that do not go together, and as `Memory`.
        MemoryFileDamaged: for a database that does not pass its engine's check.
    """
    if settings.memory is None:
        if settings.memory_open or settings.memory_strengths:
            raise ValueError("--memory-open and --memory-strengths need --memory.")
        return None
    if settings.memory_open and host not in LOOPBACK:
        raise ValueError(
            f"--memory-open lets everybody who reaches the server read all of the memory, and --host {host} can be "
            "reached by others: leave one of them out, and give out keys (lam memory keys add)."
        )
    with Memory(settings.memory, model=None) as memory:
        place = memory.store.place
        damage = memory.store.damage()
        if damage:
            raise MemoryFileDamaged(
                f"{place} is damaged and is not served ({damage[0]}). lam memory verify names what is damaged, lam "
                "memory export saves what is intact."
            )
        has_keys = Keys(memory.store).exist()
    if settings.memory_open:
        if has_keys:
            raise ValueError(f"{place} has keys: --memory-open would let everybody in without one. Leave it out.")
        return "Every program on this machine can read and change the memory without a key (--memory-open)."
    return None if has_keys else f"The memory has no key yet, so nobody can use it: lam memory keys add {place} NAME."


@dataclass(frozen=True)
class Access:
    """What a request may do with a memory.

    Attributes:
        bound: the scope of its key; None for a request without one, which names any scope that it likes.
    """

    bound: Scope | None

    def narrowed(self, user_id: str | None, agent_id: str | None, run_id: str | None) -> Scope:
        """The scope of a request that names these, all of which it may leave out.

        A user and an agent are those of the key: within a user's memories, an agent's name would open those that the
        agent keeps for itself. A conversation only makes the part smaller, so that a request may choose one.

        Raises:
            ServeError: for names that the key does not open.
            ValueError: for what is no name.
        """
        asked = Scope.of(user_id, agent_id, run_id)
        if self.bound is None:
            return asked
        for name, value, own in zip(NAMES, asked.values, self.bound.values, strict=True):
            if value and value != own and (own or name != "run_id"):
                whose = "another" if own else "no"
                message = f"The key is bound to {whose} {name}; leave {name} out, or use a key that is made for it."
                raise ServeError(403, "forbidden", message, name)
        return Scope(self.bound.user_id, self.bound.agent_id, self.bound.run_id or asked.run_id)


class _LAMInTurns:
    """The LAM of the server; a call is a turn of the request that the calling thread works on."""

    def __init__(self, lam: Any, current: Callable[[], SharedModel]) -> None:
        self._lam = lam
        self._current = current

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lam, name)

    def __call__(self, **inputs: Any) -> Any:
        return self._current().transformers_model(**inputs)


class _ModelInTurns:
    """The SentenceTransformer of the server, as a `Reader` uses one."""

    def __init__(self, model: Any, encode: Callable[..., np.ndarray], current: Callable[[], SharedModel]) -> None:
        self._model = model
        self.encode = encode
        self.transformers_model = _LAMInTurns(model.transformers_model, current)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __getitem__(self, index: int) -> Any:
        return self._model[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._model)


class ServedReader(Reader):
    """Reads for a memory with the server's own model, of which there is one copy.

    Short texts join the rows of other requests; a conversation, a long text or a document takes turns. There is no lock
    around the model, whose thread the scheduler owns: a search passes by a document that is being read.

    Args:
        name: of the model, for the memory's settings.
        model: the server's SentenceTransformer of a LAM.
        tokens: makes tokens of texts.
        prompt: the model's default prompt.
        scheduler: owns the model.
    """

    def __init__(self, name: str, model: Any, tokens: TextReader, prompt: str, scheduler: Scheduler) -> None:
        self._here = threading.local()
        self._tokens = tokens
        self._prompt = prompt
        self._scheduler = scheduler
        super().__init__(_ModelInTurns(model, self._encode, self._current))
        self.name = name
        self._load()
        self._lock = cast(Any, contextlib.nullcontext())

    def working(self, model: SharedModel, function: Callable[[], Result]) -> Result:
        """Run a function that reads; its turns are those of the request that the model belongs to."""
        self._here.model = model
        try:
            return function()
        finally:
            del self._here.model

    def _current(self) -> SharedModel:
        model: SharedModel = self._here.model
        return model

    def _encode(self, texts: list[str], show_progress_bar: bool | None = None) -> np.ndarray:
        """[texts, D] float32, as `SentenceTransformer.encode`."""
        tokens: list[Tokens] = [self._tokens.read(text, self._prompt) for text in texts]
        embeddings: np.ndarray = self._scheduler.submit(tokens).future.result()
        return embeddings


class MemoryService:
    """One process's memory, with the threads that work on it.

    Args:
        settings: the options of the server.
        model: its SentenceTransformer of a LAM.
        reader: what reads for the memory.
        scheduler: owns the model.

    Raises as `Memory`.
    """

    def __init__(self, settings: Settings, model: Any, reader: ServedReader, scheduler: Scheduler) -> None:
        assert settings.memory is not None
        strengths = settings.memory_strengths
        self._memory = Memory(
            settings.memory,
            model=reader,
            strengths=strengths,
            ranking=Ranking(strengths=STRENGTHS if strengths else 0.0),
        )
        self._keys = Keys(self._memory.store)
        self._is_open = settings.memory_open
        self._model = model
        self._reader = reader
        self._scheduler = scheduler
        self._readers = ThreadPoolExecutor(READERS, "lam-memory-readers")
        self._writers = ThreadPoolExecutor(WRITERS, "lam-memory-writers")

    def stop(self) -> None:
        """Answer what was accepted and close the database."""
        self._readers.shutdown(wait=True)
        self._writers.shutdown(wait=True)
        self._memory.close()

    async def admit(self, key: bytes) -> Access:
        """What a request with this key may do; b"" where it has none.

        Raises ServeError for a missing, wrong or revoked key.
        """
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._admit, key)

    def _admit(self, key: bytes) -> Access:
        with self._clear_errors():
            if self._is_open and not self._keys.exist():
                return Access(None)
            scope = self._keys.scope_of(key.decode("latin-1")) if key else None
            if scope is None:
                problem = "The key opens no memory here: it is wrong or was revoked. " if key else ""
                raise ServeError(401, "unauthorized", problem + NEEDS_KEY, code="invalid_api_key")
            return Access(scope)

    def part(self, scope: Scope) -> ScopedMemory:
        """What of the memory a scope may see and change."""
        named = zip(NAMES, scope.values, strict=True)
        return self._memory.within(**{name: value or None for name, value in named})

    async def look(self, request: Request, function: Callable[[], Result]) -> Result:
        """The result of a function that looks something up; at most the model reads a question for it."""
        return await self._run(request, self._readers, self._clearly(function))

    async def change(self, request: Request, function: Callable[[], Result]) -> Result:
        """The result of a function that changes something, without the model."""
        return await self._run(request, self._writers, self._clearly(function))

    async def read(self, request: Request, characters: int, function: Callable[[], Result]) -> Result:
        """The result of a function for which the model reads about so many characters; a client that goes ends it.

        Raises ServeError if that is too much, now or at all.
        """
        job = self._scheduler.open(1 + characters // 4)
        working = self._clearly(function)

        def run() -> Result:
            return in_turns(self._scheduler, self._model, job, lambda model: self._reader.working(model, working))

        return await self._run(request, self._writers, run, job.cancel)

    @staticmethod
    async def _run(
        request: Request,
        threads: ThreadPoolExecutor,
        function: Callable[[], Result],
        cancel: Callable[[], None] = lambda: None,
    ) -> Result:
        result: Result = await watched(request, asyncio.get_running_loop().run_in_executor(threads, function), cancel)
        return result

    def _clearly(self, function: Callable[[], Result]) -> Callable[[], Result]:
        def run() -> Result:
            with self._clear_errors():
                return function()

        return run

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """What a memory raises, as answers: with what to do, and without a path or text of the server."""
        place = self._memory.store.place
        try:
            yield
        except (ServeError, Cancelled):
            raise
        except UnknownMemory as error:
            raise ServeError(404, "not_found", str(error), "id") from None
        except MemoryFileRefused as error:
            raise ServeError(409, "conflict", str(error).replace(place, "The memory")) from None
        except MemoryUnavailable as error:
            logger.error("%s", error)
            raise ServeError(
                503,
                "unavailable",
                "The memory cannot be reached or written now, and nothing was changed; the server's log says why.",
                retry_after=5,
            ) from None
        except MemoryFileDamaged as error:
            logger.error("%s", error)
            raise ServeError(
                500, "damaged", "The memory's database is damaged; its owner finds out more with lam memory verify."
            ) from None
        except ValueError as error:
            raise InvalidInput(_for_http(str(error))) from None
        except Exception as error:
            # The message of an exception may quote a text, its traceback does not.
            where = "".join(traceback.format_tb(error.__traceback__))
            logger.error("%s while working on the memory:\n%s", type(error).__name__, where)
            raise ServeError(500, "backend", "The server failed; its log says why.") from None


def _for_http(message: str) -> str:
    """An error of a memory in the words of its endpoints."""
    if "can be tokenised at once" in message:  # it quotes the text
        return "The text holds more than a million characters without a space or any other place to cut it."
    return message.replace("use add_document", "use POST /documents")
