"""Embeddings as JSON."""

import base64
from typing import Any

import numpy as np
from fastapi import Response
from pydantic_core import to_json


def json_answer(body: Any, headers: dict[str, str] | None = None, status: int = 200) -> Response:
    """An answer whose body is JSON, written without a check: we made it ourselves."""
    return Response(to_json(body), status, headers, "application/json")


def as_base64(embedding: np.ndarray) -> str:
    """Little-endian float32, as the OpenAI clients read it."""
    return base64.b64encode(embedding.astype("<f4").tobytes()).decode()


def encoded(embeddings: np.ndarray, encoding_format: str) -> list:
    """[texts, D] -> for each text a list of numbers, or base64."""
    if encoding_format == "base64":
        return [as_base64(embedding) for embedding in embeddings]
    return embeddings.tolist()
