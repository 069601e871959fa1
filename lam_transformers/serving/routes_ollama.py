"""Ollama's endpoint /api/embed, and the two that its clients ask before."""

import time
from typing import Any

from fastapi import APIRouter, Request, Response

import lam_transformers

from .answers import json_answer
from .errors import ServeError
from .schemas import OllamaAnswer, OllamaError, OllamaRequest
from .service import Service


def ollama_routes(service: Service) -> APIRouter:
    """The routes of one service."""
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": OllamaError} for status in (400, 401, 403, 404, 408, 413, 421, 429, 500, 503)
    }
    router = APIRouter(prefix="/api", tags=["Ollama"], responses=errors)

    @router.post("/embed", response_model=OllamaAnswer)
    async def embed(body: OllamaRequest, request: Request) -> Response:
        """Embeddings of length one. Texts that are too long are truncated by default; `truncated` says which were."""
        start = time.perf_counter_ns()
        if not service.settings.knows(body.model):
            raise ServeError(404, "not_found", f"model not found, this server has {service.settings.name!r}")
        answer = {"model": body.model, "embeddings": [], "load_duration": 0, "prompt_eval_count": 0}
        headers: dict[str, str] = {}
        # Ollama's clients load a model by an empty input.
        if body.input not in ("", []):
            done = await service.embed(
                request, body.input, "input", truncate=body.truncate, normalize=True, dimensions=body.dimensions
            )
            answer |= {"embeddings": done.embeddings.tolist(), "prompt_eval_count": sum(done.tokens)}
            if done.truncated:
                answer["truncated"] = done.truncated
            headers = done.headers()
        answer["total_duration"] = time.perf_counter_ns() - start
        return json_answer(answer, headers)

    @router.get("/tags", response_model=None)
    async def tags() -> Response:
        """The names of the one model."""
        names = service.settings.names or (service.settings.name,)
        return json_answer({"models": [{"name": name, "model": name} for name in names]})

    @router.get("/version", response_model=None)
    async def version() -> Response:
        """The version of this server."""
        return json_answer({"version": lam_transformers.__version__})

    return router
