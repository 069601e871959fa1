"""Whatever comes to a memory over HTTP: the right code, words that say what to do, nobody's text, no stack trace."""

import json
import logging
import re
from urllib.parse import quote

import pytest

from lam_transformers.memories import Memory, MemoryUnavailable

pytest.importorskip("fastapi", reason="the serve extra is not installed")

TURN = {"role": "user", "content": "The dog."}
POSTS = {
    "/memories": {"messages": "The dog."},
    "/search": {"query": "dog"},
    "/documents": {"text": "The dog."},
    "/conversations": {"messages": [TURN], "run_id": "chat"},
}


def refused(answer, *codes, code=422):
    assert answer.status_code in (codes or (code,)), answer.text
    assert "Traceback" not in answer.text
    assert "secret" not in answer.text
    body = answer.json()
    assert set(body) == {"error", "error_type"}
    assert len(body["error"]) > 10
    return body["error"]


@pytest.mark.parametrize("path", POSTS)
def test_what_is_no_json(ada, path):
    for content in (b"", b"{", b"\xff\xfe", b'{"messages": "secret', b"[" * 100_000, b"\x00"):
        refused(ada.post(path, content=content), 400, 422)
    for body in (None, [], "secret", 5, True, {}):
        refused(ada.post(path, json=body), 400, 422)


@pytest.mark.parametrize("path", POSTS)
def test_fields_that_do_not_fit(ada, path):
    good = POSTS[path]
    times = ("timestamp", "as_of")
    for field in [*good, "user_id", "agent_id", "metadata", "title", "top_k", "kinds", "userid", *times]:
        for wrong in (5.5, True, {}, [["secret"]], "\0x", 10**400):
            answer = ada.post(path, json=good | {field: wrong})
            is_fine = (field == "metadata" and isinstance(wrong, dict)) or (field in times and wrong == 5.5)
            if not is_fine or answer.status_code != 200:
                refused(answer, 403, 422)
    assert "userid" in refused(ada.post(path, json=good | {"userid": "secret"}))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("", "text is empty"),
        (" \n", "text is empty"),
        ("a\0b", "NUL"),
        ([], "one or more"),
        (None, "messages"),
        ("x" * 10_000_000, "10,000,000 characters.*POST /documents"),
        ([TURN] * 6, "takes 5 at once"),
        ([{"role": "user", "content": "x" * 10_000_000}], "10,000,000 characters.*POST /documents"),
        ([{"content": "secret"}], r"messages\[0\] has no 'role'"),
        ([TURN, {"role": "user"}], r"\[1\] has no 'content'"),
        ([TURN, "secret"], r"messages\[1\] must be a dictionary"),
        ([{"role": "", "content": "x"}], "'role'. is empty"),
        ([{"role": "user", "content": None}], "must be a string"),
        ([{**TURN, "timestamp": "soon"}], "ISO 8601"),
        ([{**TURN, "timestamp": "2026-01-01T00:00:00"}], "no zone"),
        ([{**TURN, "timestamp": 10**400}], "no second"),
        ([{**TURN, "timestamp": 9}, {**TURN, "timestamp": 8}], "put them in order"),
        ([{**TURN, "metadata": [1]}], "dictionary"),
        ([{**TURN, "metadata": "x"}], "dictionary"),
    ],
)
def test_messages(ada, messages, message):
    for path, more in (("/memories", {}), ("/conversations", {"run_id": "chat"})):
        if path == "/conversations" and isinstance(messages, str):
            assert "must be a list" in refused(ada.post(path, json={"messages": messages, **more}))
            continue
        assert re.search(message, refused(ada.post(path, json={"messages": messages, **more})))
    assert ada.get("/memories").json() == {"results": []}


def test_text_that_is_none(ada):
    for path, field in (("/memories", "messages"), ("/search", "query"), ("/documents", "text")):
        body = json.dumps({field: "secret \\ud800"}).replace("\\\\u", "\\u")
        assert "surrogate" in refused(ada.post(path, content=body.encode()))
    for query in ("", "  ", "x" * 100_001):
        refused(ada.post("/search", json={"query": query}))
    for text in ("", "\n\n"):
        refused(ada.post("/documents", json={"text": text}))
    message = refused(ada.post("/documents", json={"text": "secret" * 200_000}))
    assert "without a space" in message


def test_metadata(ada):
    for wrong in ("NaN", "1e400", "-Infinity", "[" * 40 + "]" * 40):
        refused(ada.post("/memories", content=f'{{"messages": "The dog.", "metadata": {{"x": {wrong}}}}}'))
        turn = f'{{"role": "user", "content": "The dog.", "metadata": {{"x": {wrong}}}}}'
        refused(ada.post("/memories", content=f'{{"messages": [{turn}]}}'))
    fine = {"x": [[[1, None, "\u00e4", 10**30, {"y": 1.5}]]], "": "\u202e"}
    assert (
        ada.post("/memories", json={"messages": "The dog.", "metadata": fine}).json()["results"][0]["metadata"] == fine
    )


@pytest.mark.parametrize(
    "name",
    [
        "o'brien",
        '"; DROP TABLE memories; --',
        "../../etc/passwd",
        "a/b\\c",
        "%",
        "_",
        "*",
        "?&#=",
        "a\nb",
        "\u202eada",
        "\u00e4",
        "x" * 1000,
    ],
)
def test_odd_names_are_only_names(client_for, user, name):
    client = client_for(user_id=user + name[:900])
    client.post("/conversations", json={"messages": [TURN], "run_id": name})
    client.post("/conversations", json={"messages": [TURN], "run_id": "other"})
    (turn,) = client.get("/conversations", params={"run_id": name}).json()["results"]
    assert (turn["user_id"], turn["run_id"]) == (user + name[:900], name)
    assert len(client.post("/search", json={"query": "dog", "run_id": name}).json()["results"]) == 1
    assert client.delete("/conversations", params={"run_id": name}).json()["deleted"] == 1
    assert len(client.get("/memories").json()["results"]) == 1


@pytest.mark.parametrize("name", ["", "  ", "x" * 10_000, "a\0b"])
def test_names_that_cannot_be_stored(ada, name):
    for field in ("user_id", "agent_id", "run_id"):
        assert field in refused(ada.get("/memories", params={field: name}))
        assert field in refused(ada.delete("/memories", params={field: name}))
        assert field in refused(ada.post("/memories", json={"messages": "The dog.", field: name}))
    refused(ada.post("/memories", json={"messages": "The dog.", "key": name}))


@pytest.mark.parametrize("id", ["nope", "' OR 1=1 --", "%00", "..%2f..%2fetc%2fpasswd", "x" * 10_000, "%ff", "0-0"])
def test_unknown_ids(ada, id):
    kept = ada.post("/memories", json={"messages": "The dog."}).json()
    answers = [ada.get(f"/memories/{id}{rest}") for rest in ("", "/history", "/events")]
    answers += [ada.put(f"/memories/{id}", json={"text": "x"}), ada.delete(f"/memories/{id}")]
    answers += [ada.get(f"/documents/{id}"), ada.get(f"/documents/{id}/text"), ada.delete(f"/documents/{id}")]
    for answer in answers:
        refused(answer, code=404)
    assert ada.get("/memories").json() == kept


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        f"limit={10**30}",
        "offset=-1",
        f"offset={10**30}",
        "kinds=dream",
        "userid=ada",
        "limit=",
        "limit=1&other=b",
    ],
)
def test_queries_of_a_list(ada, query):
    refused(ada.get(f"/memories?{query}"))
    refused(ada.get(f"/documents?{query}"))
    refused(ada.get(f"/conversations/list?{query}"))


def test_a_misspelt_name_deletes_nothing(ada):
    ada.post("/memories", json={"messages": "The dog."})
    assert "runid" in refused(ada.delete("/memories", params={"runid": "chat"}))
    assert len(ada.get("/memories").json()["results"]) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0},
        {"top_k": 1001},
        {"limit": "5"},
        {"kinds": ["dream"]},
        {"kinds": []},
        {"after": "yesterday"},
        {"as_of": "2026-01-01"},
        {"threshold": "high"},
        {"filters": {"colour": "red"}},
        {"filters": {"user_id": 5}},
        {"filters": {"AND": [{"user_id": "secret"}]}},
        {"run_id": "a", "filters": {"run_id": "b"}},
    ],
)
def test_options_of_a_search(ada, options):
    refused(ada.post("/search", json={"query": "dog", **options}))


def test_queries_have_no_syntax(ada):
    ada.post("/memories", json={"messages": "The dog."})
    for query in ('"dog', "dog AND (", "dog*", "NEAR(dog, 3)", "text:dog", "-dog", "dog; --", "^dog", "\u202edog"):
        assert len(ada.post("/search", json={"query": query}).json()["results"]) == 1


def test_other_methods_and_places(ada):
    refused(ada.request("PATCH", "/memories"), 405)
    refused(ada.get("/search"), 405)
    for path in ("/memories/", "/memories/a/b", "/documents/a/b/c", "/conversations/x", "/search/x"):
        refused(ada.get(path), 404)
    refused(ada.get("/memories/" + quote("a/b", safe="")), 404)


def test_what_the_memory_cannot_do(ada, memory_server, monkeypatch, caplog):
    store = memory_server.service.memory._memory.store
    ada.post("/memories", json={"messages": "The dog."})

    def fail(error):
        def raising():
            raise error

        monkeypatch.setattr(store, "write", raising)
        with caplog.at_level(logging.ERROR):
            return ada.post("/memories", json={"messages": "The secret dog."})

    answer = fail(MemoryUnavailable("/var/secret/memory.db: the disk is full"))
    refused(answer, 503)
    assert answer.headers["retry-after"] == "5"
    assert "the disk is full" in caplog.text
    refused(fail(RuntimeError("the secret text")), 500)
    assert "the secret text" not in caplog.text
    monkeypatch.undo()
    assert len(ada.get("/memories").json()["results"]) == 1


def test_a_memory_of_another_model(start_server, serving_folder, tmp_path):
    place = tmp_path / "memory.db"
    with Memory(place, model=str(serving_folder)) as memory:
        memory.add("The dog sleeps.", user_id="ada")
        with memory.store.write() as transaction:
            transaction.run("UPDATE settings SET value = 'another' WHERE name = 'model'")
    server = start_server(memory=str(place), memory_open=True)
    with server.client() as client:
        message = refused(client.post("/memories", json={"messages": "The cat.", "user_id": "ada"}), 409)
        assert "another model" in message
        assert str(tmp_path) not in message
        assert client.post("/search", json={"query": "dog", "user_id": "ada"}).json()["results"][0]["score"] > 0


def test_a_client_that_goes_leaves_no_half(start_server, tmp_path):
    import httpx

    server = start_server(memory=str(tmp_path / "memory.db"), memory_open=True)
    text = "\n\n".join(["the old man plays guitar in the house " * 30] * 250)
    with server.client() as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/documents", json={"text": text, "title": "Long"}, timeout=0.3)
        assert client.get("/documents").json()["results"] == []
        assert client.post("/documents", json={"text": text, "title": "Long"}).json()["version"] == 1
        assert len(client.get("/memories", params={"kinds": "paragraph", "limit": 1000}).json()["results"]) == 250
