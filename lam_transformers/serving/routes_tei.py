"""The endpoints of Hugging Face's Text Embeddings Inference."""

import asyncio
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

import lam_transformers

from .answers import json_answer
from .errors import STILL_LOADING, InvalidInput, NotReady, ServeError
from .metrics import CONTENT_TYPE
from .schemas import (
    DecodeRequest,
    EmbedRequest,
    Info,
    SimilarityParameters,
    SimilarityRequest,
    TEIError,
    Token,
    TokenizeRequest,
)
from .service import Service, note

MOST_TOKENIZED = 1 << 20  # characters of one request to /tokenize, whose answer is many times as long
CALLS = 512  # concurrent requests that /info names; what is limited is tokens


def tei_routes(service: Service) -> APIRouter:
    """The routes of one service."""
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": TEIError} for status in (400, 401, 403, 408, 413, 421, 422, 429, 500, 503)
    }
    router = APIRouter(tags=["TEI"], responses=errors)

    @router.post("/embed", response_model=list[list[float]])
    async def embed(body: EmbedRequest, request: Request) -> Response:
        """Embeddings. A text that is too long is refused, or with `truncate` cut and named in x-truncated-inputs."""
        done = await service.embed(
            request,
            body.inputs,
            "inputs",
            body.prompt_name,
            bool(body.truncate),
            body.truncation_direction.lower() == "left",
            # Without `normalize` the embeddings are those of the model's own last module.
            True if body.normalize else None,
            body.dimensions,
        )
        return json_answer(done.embeddings.tolist(), done.headers())

    @router.post("/embed_all", response_model=list[list[list[float]]])
    async def embed_all(body: EmbedRequest, request: Request) -> Response:
        """The state of every token, special ones included, before pooling."""
        if body.dimensions is not None:
            raise InvalidInput("States of tokens are not truncated to dimensions; leave it out.", "dimensions")
        prompt = service.prompt(body.prompt_name)
        from_left = body.truncation_direction.lower() == "left"
        texts = await service.tokenize(body.inputs, "inputs", prompt, bool(body.truncate), from_left)
        count = sum(map(len, texts))
        most = service.engine.budget
        if count > most:
            raise InvalidInput(
                f"States of {count:,} tokens are asked for, this server gives those of {most:,} in a request.", "inputs"
            )
        job = service.scheduler.submit_function(count, lambda: service.engine.token_states(texts))
        states = await service.answer(request, job)
        note(request, inputs=len(texts), tokens=count)
        return json_answer([rows.tolist() for rows in states], {"x-compute-tokens": str(count)})

    @router.post("/similarity", response_model=list[float])
    async def similarity(body: SimilarityRequest, request: Request) -> Response:
        """Cosine similarities of a sentence to others."""
        parameters = body.parameters or SimilarityParameters()
        if not body.inputs.sentences:
            raise ServeError(400, "empty", "`sentences` is empty; send one at least.", "sentences")
        done = await service.embed(
            request,
            [body.inputs.source_sentence, *body.inputs.sentences],
            "inputs",
            parameters.prompt_name,
            bool(parameters.truncate),
            parameters.truncation_direction.lower() == "left",
            normalize=True,
        )
        scores = done.embeddings[1:].astype(np.float64) @ done.embeddings[0].astype(np.float64)
        return json_answer(scores.tolist(), done.headers())

    @router.post("/", response_model=list[list[float]] | list[float])
    async def predict(body: EmbedRequest | SimilarityRequest, request: Request) -> Response:
        """What TEI's client asks at the address of the server itself: /embed, or /similarity."""
        if isinstance(body, SimilarityRequest):
            return await similarity(body, request)
        return await embed(body, request)

    @router.post("/tokenize", response_model=list[list[Token]])
    async def tokenize(body: TokenizeRequest) -> Response:
        """The tokens of texts, each with its characters (start and stop) in the text."""
        prompt = service.prompt(body.prompt_name)
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        if not texts:
            raise ServeError(400, "empty", "`inputs` is empty; send one text at least.", "inputs")
        most = service.settings.inputs
        if len(texts) > most or sum(map(len, texts)) > MOST_TOKENIZED:
            raise InvalidInput(
                f"At most {most:,} texts of together {MOST_TOKENIZED:,} characters are tokenised at once.", "inputs"
            )
        texts = [prompt + text for text in texts]
        return json_answer(await asyncio.to_thread(service.reader.tokens, texts, body.add_special_tokens))

    @router.post("/decode", response_model=list[str])
    async def decode(body: DecodeRequest) -> Response:
        """The texts of token ids."""
        rows: list = body.ids
        rows = [rows] if rows and isinstance(rows[0], int) else rows
        if not rows:
            raise ServeError(400, "empty", "`ids` is empty; send one at least.", "ids")
        return json_answer(await asyncio.to_thread(service.reader.decode, rows, body.skip_special_tokens))

    @router.get("/info", response_model=Info)
    async def info() -> Response:
        """The model and the limits of this server."""
        settings = service.settings
        model = service.model
        pooling = next((x.pooling_mode for x in model if hasattr(x, "pooling_mode")), "mean")
        return json_answer(
            {
                "model_id": settings.name,
                "model_sha": None,
                "model_dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
                "model_type": {"embedding": {"pooling": str(pooling)}},
                "max_concurrent_requests": CALLS,
                "max_input_length": service.max_length,
                "max_batch_tokens": service.engine.budget,
                "max_batch_requests": None,
                "max_client_batch_size": settings.inputs,
                "auto_truncate": False,
                "tokenization_workers": 2,
                "version": lam_transformers.__version__,
                "dimensions": service.dimensions,
            }
        )

    @router.get("/health", response_class=Response)
    @router.get("/ping", response_class=Response, include_in_schema=False)
    async def health() -> Response:
        """200 when the server can answer; 503 while it loads the model or stops."""
        if service.draining:
            raise NotReady("The server is stopping.")
        if not service.ready:
            raise NotReady(STILL_LOADING)
        return Response(status_code=200)

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        service.count_waiting()
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    return router
