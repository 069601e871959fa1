"""Work for a client who may go before it is done."""

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import Request

from .errors import Cancelled, ServeError


async def watched(request: Request, result: asyncio.Future, cancel: Callable[[], None]) -> Any:
    """The result of a future; `cancel` is called when the client goes first, or when the task is cancelled.

    Raises Cancelled when the client has gone, and what the future raises; what is no ServeError becomes one.
    """
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((result, gone), return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise Cancelled("The client has gone.")
        return result.result()
    except (ServeError, Cancelled):
        raise
    except Exception as error:
        raise ServeError(500, "backend", "The model failed on this request; the server's log says why.") from error
    finally:
        gone.cancel()
        if not result.done():
            cancel()
            result.add_done_callback(lambda future: future.cancelled() or future.exception())


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
