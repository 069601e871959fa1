"""OpenAI's endpoints: /v1/embeddings and /v1/models."""

from typing import Any

from fastapi import APIRouter, Request, Response

from .answers import encoded, json_answer
from .errors import ServeError
from .schemas import OpenAIAnswer, OpenAIError, OpenAIModel, OpenAIModels, OpenAIRequest
from .service import Service


def openai_routes(service: Service) -> APIRouter:
    """The routes of one service."""
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": OpenAIError} for status in (400, 401, 403, 404, 408, 413, 421, 429, 500, 503)
    }
    router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=errors)

    def about(name: str) -> dict:
        return {"id": name, "object": "model", "created": service.started, "owned_by": "lam"}

    def check_model(name: str | None) -> None:
        if name is not None and not service.settings.knows(name):
            raise ServeError(
                404,
                "not_found",
                f"This server has the model {service.settings.name!r} and no other; ask for that, or start the server "
                "with --alias for the name that your client asks for.",
                "model",
                "model_not_found",
            )

    @router.post("/embeddings", response_model=OpenAIAnswer)
    async def embeddings(body: OpenAIRequest, request: Request) -> Response:
        """Embeddings of a text, of texts, or of the token ids of this model's own tokenizer."""
        check_model(body.model)
        done = await service.embed(request, body.input, "input", dimensions=body.dimensions)
        tokens = sum(done.tokens)
        rows = encoded(done.embeddings, body.encoding_format)
        answer = {
            "object": "list",
            "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)],
            "model": service.settings.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        return json_answer(answer, done.headers())

    @router.get("/models", response_model=OpenAIModels)
    async def models() -> Response:
        """The names of the one model."""
        names = service.settings.names or (service.settings.name,)
        return json_answer({"object": "list", "data": [about(name) for name in names]})

    @router.get("/models/{name:path}", response_model=OpenAIModel)
    async def model(name: str) -> Response:
        """One name of the model."""
        check_model(name)
        return json_answer(about(name))

    return router
