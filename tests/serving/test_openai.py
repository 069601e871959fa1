"""OpenAI's endpoints, by the official clients with their defaults."""

import asyncio
import base64
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from .serving_texts import KEY, sentences, words

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")
EXACT = 1e-6


@pytest.fixture
def official(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)


def vectors(answer) -> np.ndarray:
    return np.array([item.embedding for item in answer.data], dtype=np.float32)


def test_the_official_client_with_its_defaults(official, serving_model):
    """Which asks for base64."""
    texts = sentences(12)
    answer = official.embeddings.create(model="tiny-lam", input=texts)
    assert abs(vectors(answer) - serving_model.encode(texts)).max() < EXACT
    assert [item.index for item in answer.data] == list(range(12))
    assert answer.model == "tiny-lam"
    want = sum(len(ids) for ids in serving_model.tokenizer(texts)["input_ids"])
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == want


def test_the_async_client(server, serving_model):
    texts = sentences(30)

    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as official:
            tasks = [official.embeddings.create(model="tiny-lam", input=text) for text in texts]
            return await asyncio.gather(*tasks)

    got = np.concatenate([vectors(answer) for answer in asyncio.run(ask())])
    assert abs(got - serving_model.encode(texts)).max() < EXACT


def test_every_form_of_input(official, serving_model):
    texts = sentences(3)
    ids = [serving_model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    want = serving_model.encode(texts)
    for given, expected in ((texts[0], want[:1]), (texts, want), (ids[0], want[:1]), (ids, want)):
        for encoding_format in ("float", "base64"):
            answer = official.embeddings.create(model="tiny-lam", input=given, encoding_format=encoding_format)
            if encoding_format == "base64":
                got = np.stack([np.frombuffer(base64.b64decode(x.embedding), "<f4") for x in answer.data])
            else:
                got = vectors(answer)
            assert abs(got - expected).max() < EXACT


def test_dimensions(official, serving_model):
    answer = official.embeddings.create(model="tiny-lam", input="the old house", dimensions=16)
    want = serving_model.encode("the old house", truncate_dim=16, normalize_embeddings=True)
    assert abs(vectors(answer)[0] - want).max() < EXACT
    with pytest.raises(openai.BadRequestError, match="64"):
        official.embeddings.create(model="tiny-lam", input="the", dimensions=65)


def test_models(official):
    assert [model.id for model in official.models.list()] == ["tiny-lam"]
    assert official.models.retrieve("tiny-lam").owned_by == "lam"
    with pytest.raises(openai.NotFoundError) as error:
        official.embeddings.create(model="text-embedding-3-small", input="the")
    assert error.value.code == "model_not_found"
    assert error.value.param == "model"


def test_errors_have_the_body_of_that_interface(official):
    for given in ("", [], [""], [[]], [10**7], [[1, -3]]):
        with pytest.raises(openai.BadRequestError) as error:
            official.embeddings.create(model="tiny-lam", input=given)
        assert error.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="2,049"):
        official.embeddings.create(model="tiny-lam", input=["a"] * 2049)


def test_keys(keyed_server):
    wrong = openai.OpenAI(base_url=f"{keyed_server.url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as error:
        wrong.embeddings.create(model="tiny-lam", input="the")
    assert error.value.code == "invalid_api_key"
    right = openai.OpenAI(base_url=f"{keyed_server.url}/v1", api_key=KEY, max_retries=0)
    assert len(right.embeddings.create(model="tiny-lam", input="the").data) == 1
    with pytest.raises(openai.APIStatusError) as refused:
        right.embeddings.create(model="tiny-lam", input=words(4000))
    assert refused.value.status_code == 413


def test_the_official_node_client(server, serving_model):
    """LAM_NODE_MODULES is a folder with npm's `openai`."""
    modules = os.environ.get("LAM_NODE_MODULES")
    if not modules or shutil.which("node") is None or not (Path(modules) / "openai").is_dir():
        pytest.skip("LAM_NODE_MODULES names no folder with npm's openai, or there is no node.")
    code = """
        const OpenAI = require("openai").default;
        const client = new OpenAI({ baseURL: process.env.LAM_URL + "/v1", apiKey: "unused", maxRetries: 0 });
        (async () => {
          const input = JSON.parse(process.env.LAM_TEXTS);
          const answer = await client.embeddings.create({ model: "tiny-lam", input });
          const wrong = await client.embeddings.create({ model: "other", input: "the" }).catch((error) => error);
          const code = [wrong.status, wrong.code];
          console.log(JSON.stringify({ vectors: answer.data.map((x) => x.embedding), usage: answer.usage, code }));
        })();
    """
    texts = sentences(5)
    environment = os.environ | {"LAM_URL": server.url, "LAM_TEXTS": json.dumps(texts), "NODE_PATH": modules}
    done = subprocess.run(["node", "-e", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert abs(np.array(answer["vectors"]) - serving_model.encode(texts)).max() < EXACT
    assert answer["usage"]["total_tokens"] > 0
    assert answer["code"] == [404, "model_not_found"]
