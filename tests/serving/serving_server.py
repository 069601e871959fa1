"""A server that runs in a thread of the test's process."""

import asyncio
import threading
import time
from collections.abc import Callable

import httpx
import uvicorn

from lam_transformers.serving.app import create_app
from lam_transformers.serving.server import Protocol, Server, bind
from lam_transformers.serving.settings import Settings


class Running:
    """A server that runs in a thread.

    Args:
        settings: its options.
        may_listen: of `Server`.

    Attributes:
        url: where it is.
        service: the service inside.
    """

    def __init__(self, settings: Settings, may_listen: Callable[[], bool] | None = None):
        self.settings = settings
        listener = bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.address = listener.getsockname()
        app = create_app(settings)
        self.app = app
        self.service = app.state.service
        config = uvicorn.Config(app, http=Protocol, ws="none", lifespan="on", log_config=None, access_log=False)
        self._server = Server(config, settings, self.service, may_listen)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve([listener])), daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 60
        while not self.service.ready:
            assert self.service.failure is None, self.service.failure
            assert time.monotonic() < deadline, "The server does not become ready."
            time.sleep(0.02)

    def client(self, **options) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive(), "The server does not stop."
