"""The application: every route around one service."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

import lam_transformers

from .errors import Cancelled, ServeError
from .guard import Guard, dialect, error_answer
from .metrics import Metrics
from .pages import page_routes
from .routes_lam import lam_routes
from .routes_memory import memory_routes
from .routes_ollama import ollama_routes
from .routes_openai import openai_routes
from .routes_tei import tei_routes
from .service import Service
from .settings import Settings

logger = logging.getLogger(__name__)


def create_app(
    settings: Settings,
    on_failure: Callable[[], None] | None = None,
    on_loaded: Callable[[], None] | None = None,
) -> FastAPI:
    """The server as an ASGI application; `app.state.service` is the service inside.

    Args:
        settings: its options.
        on_failure: called when the model cannot be loaded; `service.failure` then says why.
        on_loaded: called when it is loaded.
    """
    service = Service(settings, Metrics())

    def load() -> None:
        try:
            service.load()
        except Exception as error:
            service.failure = error
            logger.error("The model cannot be loaded: %s", error)
            if on_failure is not None:
                on_failure()
        else:
            if on_loaded is not None:
                on_loaded()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # The server answers 503 while the model is loading, rather than not at all.
        loader = threading.Thread(target=load, name="lam-loader", daemon=True)
        loader.start()
        yield
        await asyncio.to_thread(loader.join)
        await asyncio.to_thread(service.stop)

    app = FastAPI(
        title="LAM embedding server",
        version=lam_transformers.__version__,
        description="Embeddings through the interfaces of OpenAI, TEI and Ollama. "
        "The same text has the same vector, equal to SentenceTransformer.encode to 1e-6, whatever the load.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.service = service
    for routes in (openai_routes, tei_routes, ollama_routes, lam_routes):
        app.include_router(routes(service))
    if settings.memory is not None:
        app.include_router(memory_routes(service))
    app.include_router(page_routes(app, service))
    service.paths = frozenset(path for path in app.openapi()["paths"] if "{" not in path)
    app.add_exception_handler(ServeError, _serve_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Cancelled, _cancelled)
    app.add_middleware(Guard, service=service)  # type: ignore[arg-type]
    return app


def _answer(request: Request, error: ServeError) -> Response:
    request.scope["lam.error"] = error.kind
    status, body, headers = error_answer(error, request.url.path)
    named = {name.decode(): value.decode() for name, value in headers}
    return Response(body, status, named)


async def _serve_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServeError)
    return _answer(request, error)


async def _validation_error(request: Request, error: Exception) -> Response:
    """What does not fit the schema, by the names of the fields; what was sent is not repeated."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    # Where a body may be of two kinds, their names stand before the field's.
    place = [str(part) for part in first["loc"][1:] if not str(part).endswith("Request")]
    field = place[0] if place else None
    if first["type"] == "json_invalid":
        return _answer(request, ServeError(400, "validation", "The body is no JSON; send an object in UTF-8."))
    if first["type"] == "missing":
        message = f"The field {'.'.join(place)!r} is missing." if place else "The body is missing; send a JSON object."
    elif field is None:
        message = "The body must be a JSON object."
    else:
        reason = "lone surrogates are no Unicode text" if first["type"] == "string_unicode" else first["msg"]
        message = f"The field {field!r} is not as it must be: {reason}. GET /docs shows what it takes."
    return _answer(request, ServeError(422, "validation", message, field))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kinds = {404: "not_found", 405: "not_allowed", 400: "validation"}
    messages = {
        404: "There is nothing at this address; GET /docs lists what there is.",
        405: "This address takes another method; GET /docs says which.",
        400: "The body is no JSON that can be read; send an object in UTF-8.",
    }
    status = error.status_code
    answer = ServeError(status, kinds.get(status, "other"), messages.get(status, str(error.detail)))
    response = _answer(request, answer)
    response.headers.update(error.headers or {})
    return response


async def _cancelled(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


__all__ = ["create_app", "dialect"]
