"""What only a LAM can do: sessions, late chunks, and a long text with its progress."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from ..encoding import late_chunks
from .answers import encoded, json_answer
from .errors import STILL_LOADING, Cancelled, InvalidInput, NotReady, ServeError, TooLarge
from .schemas import (
    AppendRequest,
    LateChunks,
    LateChunksRequest,
    SaveRequest,
    SessionAnswer,
    SessionEmbedding,
    SessionRequest,
    StreamRequest,
    TEIError,
)
from .service import Service, note
from .sessions import SessionStore

MOST_CHUNKS = 20_000  # spans of one answer: about 30 MB in base64
KEEP_ALIVE = 10.0  # seconds after which a silent stream says that it is still there


def lam_routes(service: Service) -> APIRouter:
    """The routes of one service."""
    statuses = (400, 401, 403, 404, 408, 409, 413, 421, 422, 429, 500, 501, 503)
    router = APIRouter(tags=["LAM"], responses={status: {"model": TEIError} for status in statuses})

    def store() -> SessionStore:
        if service.sessions is None:
            if not service.ready:
                raise NotReady(STILL_LOADING)
            raise ServeError(501, "not_supported", "Only a LAM has sessions; this server runs another model.")
        return service.sessions

    async def counted(text: str, param: str) -> int:
        if not text:
            raise ServeError(400, "empty", f"`{param}` is empty; send some text.", param)
        try:
            tokens = await service.count(text)
        except ValueError:
            raise InvalidInput(
                f"`{param}` holds more than a million characters without a space or any other place to cut it.", param
            ) from None
        if tokens > service.settings.request_tokens:
            raise TooLarge(f"`{param}` has {tokens:,} tokens, a request takes {service.settings.request_tokens:,}.")
        return tokens

    @router.post("/late-chunks", response_model=LateChunks)
    async def chunks(body: LateChunksRequest, request: Request) -> Response:
        """Spans of a text, each embedded in the light of everything before it, in one pass.

        `boundaries` is "sentence", "paragraph", a number of tokens, or spans (start, end). Spans count characters as
        Python does, one for each code point.
        """
        tokens = await counted(body.text, "text")
        boundaries = body.boundaries
        expected = len(boundaries) if isinstance(boundaries, list) else 0
        expected = tokens // boundaries if isinstance(boundaries, int) else expected
        if expected > MOST_CHUNKS:
            raise InvalidInput(f"That makes about {expected:,} chunks, an answer holds {MOST_CHUNKS:,}.", "boundaries")
        spans = [(start, end) for start, end in boundaries] if isinstance(boundaries, list) else boundaries

        def run(model):
            try:
                return late_chunks(model, body.text, spans)
            except ValueError as error:
                if isinstance(spans, list):
                    raise InvalidInput(_without_quotation(str(error)), "boundaries") from None
                raise

        made = await service.call(request, tokens, run)
        if len(made) > MOST_CHUNKS:
            raise InvalidInput(f"The text has {len(made):,} chunks, an answer holds {MOST_CHUNKS:,}.", "boundaries")
        note(request, inputs=1, tokens=tokens)
        rows = encoded(np.stack([chunk.embedding for chunk in made]), body.encoding_format) if made else []
        spans_and_rows = zip(made, rows, strict=True)
        answer = [{"start": chunk.start, "end": chunk.end, "embedding": row} for chunk, row in spans_and_rows]
        return json_answer({"chunks": answer, "tokens": tokens}, {"x-compute-tokens": str(tokens)})

    event = {"type": "object", "properties": {"event": {"type": "string"}, "data": {"type": "string"}}}
    stream_answer: dict = {200: {"content": {"text/event-stream": {"schema": event}}}}

    @router.post("/embed-stream", response_class=StreamingResponse, responses=stream_answer)
    async def embed_stream(body: StreamRequest, request: Request) -> Response:
        """One text's embedding as server-sent events: `progress` while it is read, then `embedding` or `error`."""
        service.check_dimensions(body.dimensions)
        job, queue = await service.stream(body.inputs, body.prompt_name, bool(body.truncate))
        note(request, inputs=1, tokens=job.tokens)

        async def events() -> AsyncIterator[str]:
            try:
                while True:
                    try:
                        read = await asyncio.wait_for(queue.get(), KEEP_ALIVE)
                    except TimeoutError:
                        yield ": waiting\n\n"
                        continue
                    if read is None:
                        break
                    # Only the latest number matters to somebody who reads slowly.
                    if queue.empty():
                        yield _event("progress", {"tokens_read": read, "tokens": job.tokens})
                try:
                    embedding = service.finish(job.future.result(), body.normalize or None, body.dimensions)[0]
                    yield _event("embedding", {"embedding": embedding.tolist(), "tokens": job.tokens})
                except Cancelled:
                    return
                except Exception:
                    yield _event("error", {"error": "The model failed on this text.", "error_type": "backend"})
            finally:
                job.cancel()

        return StreamingResponse(events(), media_type="text/event-stream")

    @router.post("/sessions", response_model=SessionAnswer, status_code=201)
    async def create(body: SessionRequest, request: Request) -> Response:
        """Start a text that will come in pieces; or go on from a saved one."""
        owner = request.scope["lam.owner"]
        sessions = store()
        name, session = await asyncio.to_thread(sessions.create, owner, service.model, body.saved)
        return json_answer({"id": name, "characters": session.characters, "tokens": session.tokens}, status=201)

    @router.post("/sessions/{session_id}/append", response_model=SessionAnswer)
    async def append(session_id: str, body: AppendRequest, request: Request) -> Response:
        """Read more of the text; only what is new is computed. After an error nothing has changed."""
        owner = request.scope["lam.owner"]
        sessions = store()
        tokens = await counted(body.text, "text")

        def run(model):
            with sessions.use(owner, session_id, model, write=True) as session:
                session.append(body.text)
                return {"id": session_id, "characters": session.characters, "tokens": session.tokens}

        answer = await service.call(request, tokens, run)
        note(request, inputs=1, tokens=tokens)
        return json_answer(answer)

    @router.get("/sessions/{session_id}/embedding", response_model=SessionEmbedding)
    async def embedding(
        session_id: str, request: Request, encoding_format: Literal["float", "base64"] = "float"
    ) -> Response:
        """The embedding of everything appended so far; it equals that of the whole text."""
        owner = request.scope["lam.owner"]
        sessions = store()

        def run(model):
            with sessions.use(owner, session_id, model) as session:
                row = encoded(session.embedding()[None], encoding_format)[0]
                return {
                    "id": session_id,
                    "characters": session.characters,
                    "tokens": session.tokens,
                    "embedding": row,
                }

        return json_answer(await service.call(request, 1, run))

    @router.post("/sessions/{session_id}/save", status_code=204, response_class=Response)
    async def save(session_id: str, body: SaveRequest, request: Request) -> Response:
        """Keep the session under a name; POST /sessions {"saved": name} goes on from it."""
        owner = request.scope["lam.owner"]
        await asyncio.to_thread(store().save, owner, session_id, body.name, service.model)
        return Response(status_code=204)

    @router.delete("/sessions/{session_id}", status_code=204, response_class=Response)
    async def delete(session_id: str, request: Request) -> Response:
        """Forget a session."""
        await asyncio.to_thread(store().delete, request.scope["lam.owner"], session_id)
        return Response(status_code=204)

    @router.delete("/sessions/saved/{name}", status_code=204, response_class=Response)
    async def delete_saved(name: str, request: Request) -> Response:
        """Forget a saved session."""
        await asyncio.to_thread(store().delete_saved, request.scope["lam.owner"], name)
        return Response(status_code=204)

    return router


def _event(name: str, data: dict) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def _without_quotation(message: str) -> str:
    """An error of late_chunks about a span, without the piece of the text that it shows."""
    head, equals, _ = message.partition(" = ")
    return f"{head} holds no whole token." if equals else message
