"""The processes of `lam serve`: one server, or several behind one port; and how they stop without losing a request."""

import asyncio
import contextlib
import ctypes
import dataclasses
import logging
import multiprocessing
import multiprocessing.connection
import os
import selectors
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .settings import Settings

logger = logging.getLogger(__name__)

BACKLOG = 2048  # connections that the system holds until they are accepted
KEEP_ALIVE = 65  # seconds that an idle connection is kept
HEAD_SECONDS = 15.0  # for the head of a request to arrive, and for the rest of a body that was refused
LOOK_SECONDS = 0.05  # between two looks whether connections may be accepted, or closed
UNREAD_SECONDS = 1.0  # in which a stop waits for a request that has arrived to be read
SO_ATTACH_FILTER = 26  # of Linux; Python has no name for it
BPF_RETURN = 6  # the instruction that ends a filter, here with 0 bytes to keep
CANNOT_LOAD = 3  # exit status of a worker whose model cannot be loaded


class Protocol(H11Protocol):
    """uvicorn's HTTP/1.1 with two more rules.

    The head of a request has a time limit, and a stop closes no connection on which a request may be under way.
    """

    def __init__(self, config, server_state, app_state, _loop=None):
        super().__init__(config, server_state, app_state, _loop)
        self._head_timer: asyncio.TimerHandle | None = None
        self.grace = 0.0  # seconds that an idle connection is kept at a stop

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._close)

    def connection_lost(self, exc) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._is_idle:
            self._stop_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._close)

    def shutdown(self) -> None:
        """A connection without a request is closed a moment later: one may be on its way."""
        if self._is_idle:
            self.loop.call_later(self.grace, self._close_unread, self.loop.time() + self.grace + UNREAD_SECONDS)
        else:
            super().shutdown()

    def _close_unread(self, deadline: float) -> None:
        """Close, unless a request has arrived and was not read yet: it would be reset."""
        if self.loop.time() < deadline and _has_input(self.transport.get_extra_info("socket")):
            self.loop.call_later(LOOK_SECONDS, self._close_unread, deadline)
        else:
            self._close()

    def _close(self) -> None:
        if self._is_idle and not self.transport.is_closing():
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class Server(uvicorn.Server):
    """uvicorn's server, which answers all that was accepted before it exits with status 0.

    Args:
        config: uvicorn's options.
        settings: options of the server.
        service: of the application.
        may_listen: asked until it says yes; only then the first connection is accepted.
        owns_sockets: whether no other process listens at its sockets.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        settings: Settings,
        service,
        may_listen: Callable[[], bool] | None = None,
        owns_sockets: bool = True,
    ):
        super().__init__(config)
        self._settings = settings
        self._service = service
        self._may_listen = may_listen or (lambda: True)
        self._owns_sockets = owns_sockets

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        while not self._may_listen() and not self.should_exit:
            await asyncio.sleep(LOOK_SECONDS)
        if not self.should_exit:
            for listener in sockets or []:
                server = await asyncio.get_running_loop().create_server(
                    self._connection, sock=listener, backlog=self.config.backlog
                )
                self.servers.append(server)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # From here on every answer closes its connection, so that clients go elsewhere with their next request.
        self._service.draining = True
        await asyncio.sleep(self._settings.grace_seconds)
        if self.servers:
            if self._owns_sockets:
                for listener in sockets or []:
                    refuse_connections(listener)
            await self._accept_backlog(sockets or [])
        for connection in self.server_state.connections:
            connection.grace = self._settings.grace_seconds  # type: ignore[union-attr]
        await super().shutdown(sockets)
        # A stop that was asked for is no failure: without its signal the process ends with status 0.
        self._captured_signals.clear()

    async def _accept_backlog(self, sockets: list[socket.socket]) -> None:
        """Accept the connections that the system has accepted for us: closing the socket would reset them."""
        loop = asyncio.get_running_loop()
        for listener in sockets:
            loop.remove_reader(listener)
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    break
                connection.setblocking(False)
                await loop.connect_accepted_socket(self._connection, connection)

    def _connection(self) -> asyncio.Protocol:
        kind: Any = self.config.http_protocol_class
        return kind(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError, naming the address, if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise OSError(f"{host}:{port} cannot be listened on: {error}") from error
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def refuse_connections(listener: socket.socket) -> None:
    """Let no further connection into the queue of a listening socket; those that are in it can still be accepted.

    One that came between the last that is accepted and the end of the socket would be reset, with its request. Only
    Linux can do this: with a filter of one instruction that drops every packet. Who connects then is told that the port
    is closed as soon as it is.
    """
    if sys.platform != "linux":
        return
    drop = ctypes.create_string_buffer(struct.pack("HBBI", BPF_RETURN, 0, 0, 0))
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(drop)))


def _has_input(connection: socket.socket | None) -> bool:
    """Whether something has arrived at a connection that was not read yet."""
    if connection is None or connection.fileno() < 0:
        return False
    with selectors.DefaultSelector() as selector:
        selector.register(connection.fileno(), selectors.EVENT_READ)
        return bool(selector.select(0))


def serve(settings: Settings, listener: socket.socket, workers: int = 1, log: Callable[[str], None] = print) -> None:
    """Run until a signal to stop comes and everything accepted is answered.

    Args:
        settings: options of the server.
        listener: of `bind`; closed at the end.
        workers: processes that share it.
        log: told what a person at the terminal wants to know.

    Raises:
        OSError: if the model cannot be loaded.
    """
    with _session_folder(settings) as settings:
        if workers == 1:
            _serve_here(settings, listener)
        else:
            _Supervisor(settings, listener, workers, log).run()


@contextlib.contextmanager
def _session_folder(settings: Settings) -> Iterator[Settings]:
    """The settings with a folder for sessions; a temporary one is deleted at the end."""
    if settings.session_folder is not None:
        yield settings
        return
    folder = tempfile.mkdtemp(prefix="lam-sessions-")
    try:
        yield dataclasses.replace(settings, session_folder=folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _serve_here(
    settings: Settings,
    listener: socket.socket,
    shared: bool = False,
    on_loaded: Callable[[], None] | None = None,
    others_loaded: Callable[[], bool] | None = None,
) -> None:
    """Run one process's server.

    Args:
        settings: options of the server.
        listener: where it listens.
        shared: whether other processes listen there too.
        on_loaded: called when its model is loaded.
        others_loaded: if given, nothing is accepted before it says yes and the model is loaded here too.
    """
    from .app import create_app

    def give_up() -> None:
        server.should_exit = True

    def may_listen() -> bool:
        return others_loaded is None or (app.state.service.ready and others_loaded())

    app = create_app(settings, on_failure=give_up, on_loaded=on_loaded)
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
    )
    server = Server(config, settings, app.state.service, may_listen, owns_sockets=not shared)
    server.run(sockets=[listener])
    if server.force_exit:
        logging.shutdown()
        os._exit(130)
    if app.state.service.failure is not None:
        raise OSError(str(app.state.service.failure)) from app.state.service.failure


def _work(settings: Settings, listener: socket.socket, level: int, first: bool, loaded) -> None:
    """One of several processes.

    The first accepts at once and answers 503 while its model is loading. The others, and those that take a dead one's
    place, accept nothing until they can answer: the connections that they leave go to a process that can.

    Args:
        settings: options of the server.
        listener: shared by all processes.
        level: of the log.
        first: whether this is the first.
        loaded: shared by all processes, true from when the first one's model is loaded. It has no lock, which a process
            that is killed could keep for ever.
    """

    def on_loaded() -> None:
        loaded.value = True

    def others_loaded() -> bool:
        return loaded.value

    configure_logging(level)
    try:
        if first:
            _serve_here(settings, listener, shared=True, on_loaded=on_loaded)
        else:
            _serve_here(settings, listener, shared=True, others_loaded=others_loaded)
    except OSError:
        sys.exit(CANNOT_LOAD)


class _Supervisor:
    """Keeps a number of processes alive behind one port."""

    def __init__(self, settings: Settings, listener: socket.socket, workers: int, log: Callable[[str], None]):
        self._settings = settings
        self._listener = listener
        self._count = workers
        self._log = log
        self._stopping = False
        self._context = multiprocessing.get_context("spawn")
        self._loaded = self._context.RawValue(ctypes.c_bool, False)
        self._workers: list[Any] = []

    def run(self) -> None:
        folder = tempfile.mkdtemp(prefix="lam-metrics-")
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        try:
            self._run()
        finally:
            del os.environ["PROMETHEUS_MULTIPROC_DIR"]
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        self._workers = [self._start(i) for i in range(self._count)]
        failed = False
        while not self._stopping:
            multiprocessing.connection.wait([worker.sentinel for worker in self._workers], timeout=0.2)
            for i, worker in enumerate(self._workers):
                if worker.exitcode is None or self._stopping:
                    continue
                if worker.exitcode == CANNOT_LOAD:
                    failed = self._stopping = True
                    break
                self._log(f"Process {worker.pid} ended with status {worker.exitcode}; another one takes its place.")
                self._forget(worker.pid)
                time.sleep(0.2)  # a process that cannot live must not take the machine with it
                self._workers[i] = self._start(i)
        refuse_connections(self._listener)
        # While the parent has the socket open, nobody is told that the port is closed.
        self._listener.close()
        for worker in self._workers:
            if worker.is_alive():
                os.kill(worker.pid, signal.SIGTERM)
        for worker in self._workers:
            worker.join()
        if failed:
            raise OSError(f"The model {self._settings.model} cannot be loaded; the reason is in the log above.")

    def _start(self, place: int):
        first = place == 0 and not self._loaded.value
        arguments = (self._settings, self._listener, logging.root.level, first, self._loaded)
        worker = self._context.Process(target=_work, args=arguments)
        worker.start()
        return worker

    def _stop(self, number: int, frame) -> None:
        if self._stopping and number == signal.SIGINT:
            for worker in self._workers:
                worker.kill()
        self._stopping = True

    @staticmethod
    def _forget(pid: int) -> None:
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(pid)


def configure_logging(level: int) -> None:
    """The log to the error stream, and one line of JSON for each request to the output stream."""
    logging.basicConfig(level=level, format="%(name)s: %(message)s")
    access = logging.getLogger("lam.access")
    if not access.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        access.addHandler(handler)
    access.setLevel(logging.INFO)
    access.propagate = False
