"""What stands between the network and the endpoints: keys, limits of bodies, the access log, the last word on errors.

Plain ASGI, so that a refused body is never read and that nothing sits between an endpoint and its client's going.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .errors import STILL_LOADING, Cancelled, NotReady, ServeError, TooLarge
from .memory_service import Access, is_memory_path
from .service import Service
from .settings import LOOPBACK

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

logger = logging.getLogger(__name__)
access = logging.getLogger("lam.access")

OPEN = (
    "/",
    "/docs",
    "/openapi.json",
    "/health",
    "/ping",
    "/metrics",
    "/page.js",
    "/page.css",
    "/memory",
    "/memory.js",
    "/favicon.ico",
)  # without a key
SLOWEST = 20_000  # bytes a second that a large body has to come with
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)


def dialect(path: str) -> str:
    """Whose clients ask at this path."""
    return "openai" if path.startswith("/v1/") else "ollama" if path.startswith("/api/") else "tei"


def error_answer(error: ServeError, path: str) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    """Status, body and headers of an error, in the form that the clients of this path know."""
    speaks = dialect(path)
    status = error.status
    if speaks != "tei" and status == 422:
        status = 400
    body: dict[str, Any]
    if speaks == "openai":
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status, "invalid_request_error")
        kind = "server_error" if status >= 500 else kind
        body = {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}
    elif speaks == "ollama":
        body = {"error": error.message}
    else:
        body = {"error": error.message, "error_type": error.kind}
    headers = [(b"content-type", b"application/json")]
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return status, json.dumps(body).encode(), headers


class Guard:
    """ASGI middleware around the application.

    Args:
        app: the application.
        service: its settings, its metrics, and whether it is ready.
    """

    def __init__(self, app, service: Service):
        self.app = app
        self.service = service
        self._keys = [hashlib.sha256(key.encode()).digest() for key in service.settings.api_keys]
        self._held = 0  # bytes of the bodies that are in memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = _Request(scope, send, self.service)
        held = [0]
        try:
            if not self._keys:
                self._check_local(scope)
            if self.service.settings.memory is not None and is_memory_path(scope["path"]):
                scope["lam.access"] = await self._check_memory_key(scope)
            else:
                scope["lam.owner"] = self._check_key(scope)
            if not self._is_open(scope) and not self.service.ready:
                raise NotReady(STILL_LOADING)
            if scope["method"] in ("POST", "PUT", "PATCH"):
                receive = await self._body(scope, receive, held)
            await self.app(scope, receive, request.send)
        except Cancelled:
            await request.gone()
        except ServeError as error:
            await request.refuse(error)
        except Exception as error:
            # The message of an exception may quote a text, its traceback does not.
            where = "".join(traceback.format_tb(error.__traceback__))
            logger.error("%s while answering %s:\n%s", type(error).__name__, scope["path"], where)
            await request.refuse(ServeError(500, "backend", "The server failed; its log says why."))
        finally:
            self._held -= held[0]
            request.log()

    @staticmethod
    def _is_open(scope: Scope) -> bool:
        return scope["path"] in OPEN and scope["method"] in ("GET", "HEAD")

    @staticmethod
    def _check_local(scope: Scope) -> None:
        """Without a key only this machine may ask, and no web page that another site made its browser open."""
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        name = host.rsplit(":", 1)[0] if host.rsplit(":", 1)[-1].isdigit() else host
        if name.strip("[]") not in LOOPBACK:
            raise ServeError(421, "validation", "Without an API key this server answers to localhost only.")
        if headers.get(b"sec-fetch-site") == b"cross-site" and scope["method"] != "GET":
            raise ServeError(403, "forbidden", "Without an API key this server answers no other site's pages.")

    def _check_key(self, scope: Scope) -> str:
        """Who asks: a digest of the key, "" where none is needed.

        Raises ServeError for a missing or wrong key.
        """
        if not self._keys or self._is_open(scope):
            return ""
        given = _key_of(scope)
        digest = hashlib.sha256(given).digest()
        # Every key is compared, whether or not an earlier one was right.
        right = [hmac.compare_digest(digest, key) for key in self._keys]
        if not any(right):
            problem = "wrong" if given else "missing"
            raise ServeError(
                401,
                "unauthorized",
                f"The API key is {problem}; send one in the header 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
            )
        return digest.hex()

    async def _check_memory_key(self, scope: Scope) -> Access:
        """What the request may do with the memory, whose keys are its own.

        Raises ServeError for a missing, wrong or revoked key, and for pages of others where none is needed.
        """
        access = await self.service.memory.admit(_key_of(scope))
        if access.bound is None:
            self._check_local(scope)
            # What a page of another server on this machine may ask of an embedding server, it may not of a memory.
            if dict(scope["headers"]).get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
                raise ServeError(403, "forbidden", "Without a key a memory answers to no other site's pages.")
        return access

    async def _body(self, scope: Scope, receive: Receive, held: list[int]) -> Receive:
        """Read the body within the limits of size and time; a `receive` that hands it over.

        Raises ServeError for a body that is too large, comes too slowly, or finds no room.
        """
        limit = self.service.settings.body_bytes
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > limit:
            raise TooLarge(f"The body has {int(announced):,} bytes, this server takes {limit:,}; send less at once.")
        start = time.monotonic()
        parts: list[bytes] = []
        size = 0
        more = True
        while more:
            patience = self.service.settings.body_seconds + size / SLOWEST - (time.monotonic() - start)
            try:
                message = await asyncio.wait_for(receive(), max(patience, 0))
            except TimeoutError:
                raise ServeError(
                    408, "timeout", f"The body did not arrive within {self.service.settings.body_seconds:.0f} seconds."
                ) from None
            if message["type"] == "http.disconnect":
                raise Cancelled("The client has gone.")
            part = message.get("body", b"")
            more = message.get("more_body", False)
            size += len(part)
            if size > limit:
                raise TooLarge(f"The body has more than {limit:,} bytes, which is all this server takes.")
            self._held += len(part)
            held[0] += len(part)
            if self._held > self.service.settings.waiting_bytes and self._held > size:
                raise ServeError(
                    429,
                    "overloaded",
                    "The bodies of the requests that wait fill the memory they may have; try again later.",
                    code="rate_limit_exceeded",
                    retry_after=2,
                )
            parts.append(part)
        body = b"".join(parts)
        # Ollama's and curl's clients send JSON without saying so.
        named = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
        scope["headers"] = [*named, (b"content-type", b"application/json")]
        handed = False

        async def hand_over() -> Any:
            nonlocal handed
            if handed:
                return await receive()
            handed = True
            return {"type": "http.request", "body": body, "more_body": False}

        return hand_over


def _key_of(scope: Scope) -> bytes:
    """The key that a request has, b"" for none."""
    headers = dict(scope["headers"])
    given = headers.get(b"authorization", b"")
    if given[:7].lower() == b"bearer ":
        return given[7:].strip()
    return headers.get(b"api-key", headers.get(b"x-api-key", b"")).strip()


class _Request:
    """One request, for its answer's headers and the access log."""

    def __init__(self, scope: Scope, send: Send, service: Service):
        self._scope = scope
        self._send = send
        self._service = service
        self._start = time.perf_counter()
        self._id = uuid.uuid4().hex
        self._status = 0
        self._error: ServeError | None = None

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            present = {name for name, _ in message.get("headers", [])}
            extra = [(name, value) for name, value in SECURITY_HEADERS if name not in present]
            extra.append((b"x-request-id", self._id.encode()))
            if self._service.draining:
                extra.append((b"connection", b"close"))
            message = {**message, "headers": [*message.get("headers", []), *extra]}
        await self._send(message)

    async def refuse(self, error: ServeError) -> None:
        self._error = error
        if self._status:  # the answer has begun: without its end, the client sees that it was broken off
            return
        status, body, headers = error_answer(error, self._scope["path"])
        headers.append((b"content-length", str(len(body)).encode()))
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    async def gone(self) -> None:
        """Nobody is there to read it, but the server wants an answer; 499 is what the log then says."""
        if not self._status:
            await self.send({"type": "http.response.start", "status": 499, "headers": [(b"content-length", b"0")]})
            await self.send({"type": "http.response.body", "body": b""})

    def log(self) -> None:
        """One line of JSON, without a text, a query or a session's id, and the metrics."""
        seconds = time.perf_counter() - self._start
        route = getattr(self._scope.get("route"), "path", None)
        asked = self._scope["path"]
        path = route or (asked if asked in self._service.paths else "other")
        facts = self._scope.get("lam.facts", {})
        reason = self._scope.get("lam.error") or (self._error.kind if self._error else None)
        client = self._scope.get("client")
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "request": self._id,
            "client": client[0] if client else None,
            "method": self._scope["method"],
            "path": path,
            "status": self._status,
            "milliseconds": round(1000 * seconds, 1),
            **facts,
            **({"error": reason} if reason else {}),
        }
        access.info("%s", json.dumps(line))
        if self._scope["method"] == "POST":
            method = "single" if facts.get("inputs", 1) == 1 else "batch"
            metrics = self._service.metrics
            metrics.requests.labels(method).inc()
            metrics.duration.observe(seconds)
            if self._status < 400:
                metrics.successes.labels(method).inc()
            else:
                metrics.failures.labels(reason or ("cancelled" if self._status == 499 else "other")).inc()
