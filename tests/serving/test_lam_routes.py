"""Sessions, late chunks and the stream of a long text."""

import base64
import json
import time

import httpx
import numpy as np
import pytest

from lam_transformers import late_chunks

from .serving_texts import KEY, sentences, words

EXACT = 1e-6


def vector(answer) -> np.ndarray:
    return np.array(answer.json()["embedding"], dtype=np.float32)


def test_a_session(client, serving_model):
    text = ". ".join(sentences(150))
    created = client.post("/sessions", json={})
    assert created.status_code == 201
    place = f"/sessions/{created.json()['id']}"
    for start in range(0, len(text), 4000):
        appended = client.post(f"{place}/append", json={"text": text[start : start + 4000]})
        assert appended.status_code == 200
        assert appended.json()["characters"] == min(start + 4000, len(text))
        # At any moment it is the embedding of what was appended so far.
        got = client.get(f"{place}/embedding")
        assert abs(vector(got) - serving_model.encode(text[: start + 4000])).max() < EXACT
    packed = client.get(f"{place}/embedding", params={"encoding_format": "base64"}).json()["embedding"]
    assert abs(np.frombuffer(base64.b64decode(packed), "<f4") - serving_model.encode(text)).max() < EXACT
    assert client.delete(place).status_code == 204
    for answer in (client.get(f"{place}/embedding"), client.delete(place)):
        assert answer.status_code == 404
        assert "POST /sessions" in answer.json()["error"]


def test_a_saved_session(client, serving_model):
    first = client.post("/sessions", json={}).json()["id"]
    client.post(f"/sessions/{first}/append", json={"text": "the old "})
    assert client.post(f"/sessions/{first}/save", json={"name": "my-book_1"}).status_code == 204
    client.post(f"/sessions/{first}/append", json={"text": "river"})
    second = client.post("/sessions", json={"saved": "my-book_1"}).json()["id"]
    client.post(f"/sessions/{second}/append", json={"text": "house"})
    got = vector(client.get(f"/sessions/{second}/embedding"))
    assert abs(got - serving_model.encode("the old house")).max() < EXACT
    got = vector(client.get(f"/sessions/{first}/embedding"))
    assert abs(got - serving_model.encode("the old river")).max() < EXACT
    assert client.delete("/sessions/saved/my-book_1").status_code == 204
    assert client.delete("/sessions/saved/my-book_1").status_code == 404
    assert client.post("/sessions", json={"saved": "my-book_1"}).status_code == 404


@pytest.mark.parametrize(
    "name", ["../up", "..", "/etc/passwd", "a/b", "a\\b", "", "a" * 65, "a\x00b", "ä", ".hidden", "a b"]
)
def test_names_that_could_leave_the_folder(client, name):
    session = client.post("/sessions", json={}).json()["id"]
    assert client.post(f"/sessions/{session}/save", json={"name": name}).status_code == 422
    assert client.post("/sessions", json={"saved": name}).status_code == 422
    client.delete(f"/sessions/{session}")


@pytest.mark.parametrize("name", ["..%2f..%2fetc", "%2e%2e", "a" * 22, "a%00b", "x"])
def test_ids_that_are_none(client, name):
    assert client.get(f"/sessions/{name}/embedding").status_code == 404
    assert client.post(f"/sessions/{name}/append", json={"text": "the"}).status_code == 404


def test_a_session_of_another_key(keyed_server, keyed):
    session = keyed.post("/sessions", json={}).json()["id"]
    keyed.post(f"/sessions/{session}/append", json={"text": "the secret river"})
    keyed.post(f"/sessions/{session}/save", json={"name": "mine"})
    with keyed_server.client(headers={"Authorization": "Bearer another-key"}) as other:
        assert other.get(f"/sessions/{session}/embedding").status_code == 404
        assert other.post(f"/sessions/{session}/append", json={"text": "the"}).status_code == 404
        assert other.post(f"/sessions/{session}/save", json={"name": "theirs"}).status_code == 404
        assert other.delete(f"/sessions/{session}").status_code == 404
        assert other.post("/sessions", json={"saved": "mine"}).status_code == 404
        assert other.delete("/sessions/saved/mine").status_code == 404
    assert keyed.get(f"/sessions/{session}/embedding").status_code == 200
    keyed.delete(f"/sessions/{session}")


def test_more_sessions_than_there_may_be(keyed):
    made = []
    for _ in range(60):
        answer = keyed.post("/sessions", json={})
        if answer.status_code == 201:
            made.append(answer.json()["id"])
            continue
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) > 0
    assert len(made) == 5
    for name in made:
        keyed.delete(f"/sessions/{name}")
    assert keyed.post("/sessions", json={}).status_code == 201


def test_unused_sessions_are_forgotten(start_server):
    with start_server(sessions=2, session_seconds=0.3).client() as client:
        first = client.post("/sessions", json={}).json()["id"]
        client.post("/sessions", json={})
        assert client.post("/sessions", json={}).status_code == 429
        time.sleep(0.5)
        assert client.post("/sessions", json={}).status_code == 201
        assert client.get(f"/sessions/{first}/embedding").status_code == 404


@pytest.mark.parametrize("boundaries", ["sentence", "paragraph", 20, [[0, 7], [8, 15]]])
def test_late_chunks(client, serving_model, boundaries):
    text = "the old house. the river sings.\n\n" + ". ".join(sentences(60))
    answer = client.post("/late-chunks", json={"text": text, "boundaries": boundaries}).json()
    spans = [tuple(span) for span in boundaries] if isinstance(boundaries, list) else boundaries
    want = late_chunks(serving_model, text, spans)
    assert [(chunk["start"], chunk["end"]) for chunk in answer["chunks"]] == [(c.start, c.end) for c in want]
    got = np.array([chunk["embedding"] for chunk in answer["chunks"]])
    assert abs(got - np.stack([chunk.embedding for chunk in want])).max() < EXACT


@pytest.mark.parametrize(
    "boundaries", [0, -1, True, "word", [[3, 1]], [[0, 10**9]], [[0, 3], [1, 4]], [[3, 4]], [[1]], None]
)
def test_wrong_boundaries(client, boundaries):
    answer = client.post("/late-chunks", json={"text": "the secret house", "boundaries": boundaries})
    assert answer.status_code == 422
    assert "secret" not in answer.text


def test_a_long_text_and_its_progress(server, serving_model):
    text = words(12_000)
    events = []
    with server.client() as client, client.stream("POST", "/embed-stream", json={"inputs": text}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        name = None
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                events.append((name, json.loads(line[6:])))
    progress = [data["tokens_read"] for name, data in events if name == "progress"]
    assert progress == sorted(progress)
    assert len(progress) > 2
    assert all(data["tokens"] == 12_002 for _, data in events)
    assert events[-1][0] == "embedding"
    assert abs(np.array(events[-1][1]["embedding"]) - serving_model.encode(text)).max() < EXACT


def test_a_client_that_goes_takes_its_work_along(server):
    with server.client() as client:
        for path, body in (
            ("/embed", {"inputs": words(200_000)}),
            ("/late-chunks", {"text": words(200_000)}),
            ("/embed-stream", {"inputs": words(200_000)}),
        ):
            with pytest.raises(httpx.ReadTimeout), client.stream("POST", path, json=body, timeout=1.5) as answer:
                for _ in answer.iter_raw():
                    pass
                raise httpx.ReadTimeout("The stream ended.")
    scheduler = server.service.scheduler
    deadline = time.monotonic() + 20
    while scheduler.waiting_tokens and time.monotonic() < deadline:
        time.sleep(0.05)
    assert scheduler.waiting_tokens == 0


def test_the_key_is_needed(keyed_server):
    with keyed_server.client() as client:
        assert client.post("/sessions", json={}).status_code == 401
        assert client.post("/sessions", json={}, headers={"x-api-key": KEY}).status_code in (201, 429)
