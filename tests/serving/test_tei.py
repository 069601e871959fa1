"""TEI's endpoints, by huggingface_hub's client and by hand."""

import asyncio

import numpy as np
from huggingface_hub import AsyncInferenceClient, InferenceClient

from .serving_texts import sentences, words

EXACT = 1e-6


def test_feature_extraction(server, serving_model):
    texts = sentences(6)
    official = InferenceClient(server.url)
    assert abs(official.feature_extraction(texts[0]) - serving_model.encode(texts[:1])).max() < EXACT
    got = official.feature_extraction(texts[0], normalize=True, truncate=True, prompt_name="query")
    assert abs(got - serving_model.encode(texts[:1], prompt_name="query")).max() < EXACT


def test_feature_extraction_async(server, serving_model):
    texts = sentences(20)

    async def ask():
        official = AsyncInferenceClient(server.url)
        return await asyncio.gather(*(official.feature_extraction(text) for text in texts))

    assert abs(np.concatenate(asyncio.run(ask())) - serving_model.encode(texts)).max() < EXACT


def test_sentence_similarity(server, serving_model):
    texts = sentences(4)
    got = InferenceClient(server.url).sentence_similarity(texts[0], texts[1:])
    vectors = serving_model.encode(texts)
    assert abs(np.array(got) - vectors[1:] @ vectors[0]).max() < EXACT


def test_embed(client, serving_model):
    texts = sentences(9)
    answer = client.post("/embed", json={"inputs": texts})
    assert abs(np.array(answer.json()) - serving_model.encode(texts, normalize_embeddings=True)).max() < EXACT
    count = sum(len(ids) for ids in serving_model.tokenizer(texts)["input_ids"])
    assert int(answer.headers["x-compute-tokens"]) == count
    for name in ("x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time"):
        assert int(answer.headers[name]) >= 0
    got = client.post("/embed", json={"inputs": texts[0], "dimensions": 8, "prompt_name": "query"}).json()
    want = serving_model.encode(texts[:1], prompt_name="query", truncate_dim=8, normalize_embeddings=True)
    assert abs(np.array(got) - want).max() < EXACT


def test_embed_all(client, serving_model):
    texts = sentences(3)
    got = client.post("/embed_all", json={"inputs": texts}).json()
    want = serving_model.encode(texts, output_value="token_embeddings")
    for states, expected in zip(got, want, strict=True):
        assert abs(np.array(states) - expected.numpy()).max() < 1e-5
    assert client.post("/embed_all", json={"inputs": words(3000)}).status_code == 422


def test_truncation_is_never_silent(start_server, padded_folder):
    with start_server(model=str(padded_folder)).client() as client:
        model_of_its_own = client.get("/info").json()
        assert model_of_its_own["max_input_length"] == 48
        assert model_of_its_own["auto_truncate"] is False
        text = words(100)
        refused = client.post("/embed", json={"inputs": text})
        assert refused.status_code == 422
        assert "48" in refused.json()["error"]
        cut = client.post("/embed", json={"inputs": ["the", text], "truncate": True})
        assert cut.status_code == 200
        assert cut.headers["x-truncated-inputs"] == "1"
        left = client.post("/embed", json={"inputs": text, "truncate": True, "truncation_direction": "Left"})
        assert left.json() != cut.json()[1:]
        # What only a LAM can do says so.
        assert client.post("/late-chunks", json={"text": "the"}).status_code == 501
        assert client.post("/sessions", json={}).status_code == 501


def test_tokenize_and_decode(client, serving_model):
    text = "The old woman"
    (tokens,) = client.post("/tokenize", json={"inputs": text}).json()
    assert [token["id"] for token in tokens] == serving_model.tokenizer(text)["input_ids"]
    assert [token["text"] for token in tokens] == ["[CLS]", "The", "old", "woman", "[SEP]"]
    assert [token["special"] for token in tokens] == [True, False, False, False, True]
    assert (tokens[2]["start"], tokens[2]["stop"]) == (4, 7)
    (bare,) = client.post("/tokenize", json={"inputs": [text], "add_special_tokens": False}).json()
    ids = [token["id"] for token in bare]
    assert client.post("/decode", json={"ids": ids}).json() == ["the old woman"]
    assert client.post("/decode", json={"ids": [ids, ids]}).json() == ["the old woman"] * 2
    # Ids made here give the vector of the text.
    vectors = [client.post("/embed", json={"inputs": x}).json() for x in (text, [ids])]
    assert abs(np.array(vectors[0]) - np.array(vectors[1])).max() < EXACT


def test_health_info_and_metrics_need_no_key(keyed_server):
    with keyed_server.client() as client:
        for path in ("/health", "/ping", "/metrics", "/", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200, path
        assert client.get("/info").status_code == 401
        assert client.get("/v1/models").status_code == 401


def test_metrics_have_the_names_of_tei(client):
    client.post("/embed", json={"inputs": "the old house"})
    client.post("/embed", json={"inputs": ""})
    text = client.get("/metrics").text
    for name in (
        'te_request_count{method="single"}',
        'te_request_success{method="single"}',
        'te_request_failure{err="empty"}',
        "te_request_duration_bucket",
        "te_request_tokenization_duration_sum",
        "te_request_queue_duration_sum",
        "te_request_inference_duration_sum",
        "te_request_input_length_count",
        "te_queue_size",
        "te_batch_next_size_sum",
        "te_batch_next_tokens_sum",
    ):
        assert f"\n{name}" in text, name
    assert "_created" not in text
    assert "the old house" not in text
