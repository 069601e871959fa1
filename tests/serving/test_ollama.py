"""Ollama's endpoint."""

import numpy as np

from .serving_texts import sentences, words

EXACT = 1e-6


def test_embed(client, serving_model):
    texts = sentences(4)
    # As Ollama's documentation shows it: curl -d, which says that the body is a form.
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    content = '{"model": "tiny-lam:latest", "input": "the old house"}'
    answer = client.post("/api/embed", content=content, headers=headers).json()
    assert abs(np.array(answer["embeddings"]) - serving_model.encode(["the old house"])).max() < EXACT
    assert answer["model"] == "tiny-lam:latest"
    assert answer["prompt_eval_count"] == 5
    assert answer["total_duration"] > 0
    body = {"model": "tiny-lam", "input": texts, "keep_alive": "5m", "options": {"num_ctx": 512}, "dimensions": 8}
    got = np.array(client.post("/api/embed", json=body).json()["embeddings"])
    assert abs(got - serving_model.encode(texts, truncate_dim=8, normalize_embeddings=True)).max() < EXACT


def test_an_empty_input_loads_the_model(client):
    assert client.post("/api/embed", json={"model": "tiny-lam", "input": ""}).json()["embeddings"] == []


def test_truncation_is_told(keyed):
    answer = keyed.post("/api/embed", json={"model": "tiny-lam", "input": ["the", words(4000)]}).json()
    assert "error" in answer  # truncated to what a request may hold, the two together are still too many
    answer = keyed.post("/api/embed", json={"model": "tiny-lam", "input": [words(4000)]}).json()
    assert answer["truncated"] == [0]
    assert answer["prompt_eval_count"] == 3000
    refused = keyed.post("/api/embed", json={"model": "tiny-lam", "input": words(4000), "truncate": False})
    assert refused.status_code == 413


def test_errors(client):
    assert client.post("/api/embed", json={"model": "llama", "input": "the"}).status_code == 404
    wrong = client.post("/api/embed", json={"model": "tiny-lam", "input": [1]})
    assert wrong.status_code == 400
    assert list(wrong.json()) == ["error"]
    assert client.get("/api/tags").json()["models"][0]["name"] == "tiny-lam"
    assert client.get("/api/version").json()["version"]
