"""LAM on more than one machine: a Ray Serve deployment whose batches are counted in tokens.

    pip install 'lam-transformers[serve]' 'ray[serve]'
    serve run examples.serving.ray_serve:app        # or: python examples/serving/ray_serve.py

Each replica holds the model. `serve.batch` gathers the requests that wait into batches of at most TOKENS tokens
(`batch_size_fn`), which then run as packed rows. Ray starts a replica that died again, and its handle asks another one
meanwhile.
"""

import asyncio
import os
from typing import Any

from ray import serve
from starlette.requests import Request

MODEL = os.environ.get("LAM_MODEL", "LAM-base-v1")
REPLICAS = int(os.environ.get("LAM_REPLICAS", "2"))
TOKENS = 2048  # of a batch


def count_tokens(batch: list[list[Any]]) -> int:
    """Tokens of the texts of a batch of requests."""
    return sum(len(tokens) for request in batch for tokens in request)


@serve.deployment(num_replicas=REPLICAS, max_ongoing_requests=64, ray_actor_options={"num_cpus": 0.5})
class Embedder:
    """The model, and texts in, embeddings out."""

    def __init__(self, model: str = MODEL):
        from lam_transformers.io.loading import load_sentence_transformer
        from lam_transformers.serving.engine import TextReader, longest_text, make_engine

        loaded = load_sentence_transformer(model)
        self.engine = make_engine(loaded)
        self.reader = TextReader(loaded, longest_text(loaded))
        self.lock = asyncio.Lock()

    @serve.batch(max_batch_size=TOKENS, batch_wait_timeout_s=0.002, batch_size_fn=count_tokens)
    async def read(self, requests: list[list[Any]]) -> list[list[list[float]]]:
        """The embeddings of each request's texts."""
        vectors = iter(await self._run([tokens for request in requests for tokens in request]))
        return [[next(vectors) for _ in request] for request in requests]

    async def embed(self, texts: list[str]) -> list[list[float]]:
        """The embeddings of some texts; more tokens than a batch holds are read without one."""
        tokens = [self.reader.read(text) for text in texts]
        return await (self._run(tokens) if count_tokens([tokens]) > TOKENS else self.read(tokens))

    async def _run(self, texts: list[Any]) -> list[list[float]]:
        # In a thread, so that requests are accepted meanwhile; one at a time has the model.
        async with self.lock:
            return (await asyncio.to_thread(self.engine.encode_all, texts)).tolist()

    async def __call__(self, request: Request) -> Any:
        body = await request.json()
        inputs = body["inputs"]
        return await self.embed([inputs] if isinstance(inputs, str) else inputs)


app = Embedder.bind()  # type: ignore[attr-defined]


if __name__ == "__main__":
    handle = serve.run(app)
    print(len(handle.embed.remote(["A man is playing a guitar on the street."]).result()[0]))
