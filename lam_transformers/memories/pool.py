"""Connections to a database that threads share: taken from those that are free, and given back unless in doubt."""

import contextlib
import os
import queue
from collections.abc import Iterator
from typing import Any

from .errors import MemoryUnavailable


class Pool:
    """The part of a store that keeps its connections; the store says how one is made and when one is idle.

    Attributes:
        place: where the data is, for messages.
    """

    place: str

    def __init__(self) -> None:
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._process = os.getpid()
        self._closed = False

    def _connect(self) -> Any:
        raise NotImplementedError

    def _is_idle(self, connection: Any) -> bool:
        """Whether a connection is in no transaction."""
        raise NotImplementedError

    def _after_fork(self) -> None:
        """In a process that was forked: connections do not survive that."""
        self._free = queue.SimpleQueue()
        self._process = os.getpid()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Any]:
        if self._closed:
            raise MemoryUnavailable(f"{self.place} was closed; open it again with Memory(...).")
        if self._process != os.getpid():
            self._after_fork()
        try:
            connection = self._free.get_nowait()
        except queue.Empty:
            connection = self._connect()
        usable = False
        try:
            yield connection
            usable = True
        except ValueError:  # not the database's: an id that does not exist, say
            usable = self._is_idle(connection)
            raise
        finally:
            if usable and not self._closed:
                self._free.put(connection)
            else:
                connection.close()

    def close(self) -> None:
        """Let go of all connections."""
        self._closed = True
        while True:
            try:
                self._free.get_nowait().close()
            except queue.Empty:
                return
