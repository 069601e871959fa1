"""Whatever comes: the right code, a body that says what to do, no text of anybody in it, no stack trace."""

import json
import logging
import socket
import threading
import time

import pytest

from .serving_texts import KEY, words

POSTS = {
    "/": {"inputs": "the"},
    "/v1/embeddings": {"model": "tiny-lam", "input": "the"},
    "/api/embed": {"model": "tiny-lam", "input": "the"},
    "/embed": {"inputs": "the"},
    "/embed_all": {"inputs": "the"},
    "/similarity": {"inputs": {"source_sentence": "the", "sentences": ["the"]}},
    "/tokenize": {"inputs": "the"},
    "/decode": {"ids": [5, 6]},
    "/late-chunks": {"text": "the"},
    "/embed-stream": {"inputs": "the"},
    "/sessions": {},
}
NO_JSON = [
    b"",
    b"{",
    b"\xff\xfe",
    b'{"inputs": "the',
    b"{'inputs': 'the'}",
    b"[" * 100_000,
    b'{"inputs": ' + b"9" * 10_000 + b"}",
    b"\x00",
]


def check(answer, path, *codes):
    assert answer.status_code in codes, answer.text
    body = answer.json()
    message = body["error"]["message"] if path.startswith("/v1/") else body["error"]
    assert len(message) > 10
    assert "Traceback" not in answer.text
    assert "secret" not in answer.text
    return message


@pytest.mark.parametrize("path", POSTS)
def test_what_is_no_json(client, path):
    for content in NO_JSON:
        check(client.post(path, content=content), path, 400, 422)
    for body in (None, [], "secret", 5, True):
        check(client.post(path, json=body), path, 400, 422)


@pytest.mark.parametrize("path", [path for path in POSTS if path != "/sessions"])
def test_wrong_types(client, path):
    good = POSTS[path]
    for field in good:
        for wrong in (None, 5.5, True, {}, [None], [[]], ["secret", 5], [["secret"]], {"secret": 1}, [1.5], [True]):
            if wrong is None and field == "model" and path == "/v1/embeddings":
                continue  # the one model is meant
            check(client.post(path, json=good | {field: wrong}), path, 400, 422)
        if field != "model" or path == "/api/embed":
            rest = {name: x for name, x in good.items() if name != field}
            check(client.post(path, json=rest | {"x": 1}), path, 400, 422)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/embed", "/embed", "/embed_all"])
def test_texts_that_are_none(client, path):
    field = "input" if "input" in POSTS[path] else "inputs"
    good = POSTS[path]
    for wrong in (["secret", ""], [""]):
        check(client.post(path, json=good | {field: wrong}), path, 400)
    if path != "/api/embed":
        for wrong in ("", [], [[]]):
            check(client.post(path, json=good | {field: wrong}), path, 400, 422)
    check(client.post(path, json=good | {field: ["the"] * 10_000}), path, 400, 422)
    surrogate = json.dumps(good | {field: "secret \\ud800"}).replace("\\\\u", "\\u")
    assert "surrogate" in check(client.post(path, content=surrogate.encode()), path, 400, 422)
    # NUL is a character like others.
    assert client.post(path, json=good | {field: "the\x00house"}).status_code == 200


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-1", "0", "1e400", "16.0", '"16"', "65", "99999999999999999999"]
)
@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/embed", "/embed"])
def test_numbers_that_are_none(client, path, number):
    body = json.dumps(POSTS[path] | {"dimensions": 1}).replace("1}", number + "}")
    check(client.post(path, content=body), path, 400, 422)


def test_unknown_prompts(client):
    message = check(client.post("/embed", json={"inputs": "the", "prompt_name": "secret"}), "/embed", 422)
    assert "query" in message


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed", "/embed_all", "/decode"])
def test_ids_out_of_the_vocabulary(client, path):
    good = POSTS[path]
    field = next(name for name in ("input", "inputs", "ids") if name in good)
    for wrong in ([-1], [10**6], [5, 2**70], [[5], [10**6]]):
        check(client.post(path, json=good | {field: wrong}), path, 400, 422)


@pytest.mark.parametrize("path", ["/v1/nothing", "/api/nothing", "/nothing", "/v1", "/../etc/passwd", "/v1/models/"])
def test_no_such_place(client, path):
    check(client.get(path), path, 404)
    check(client.request("PUT", "/embed"), "/embed", 405, 422, 400)


def test_keys(keyed_server):
    with keyed_server.client() as client:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer"},
            {"Authorization": KEY},
            {"Authorization": f"Basic {KEY}"},
            {"Authorization": f"Bearer {KEY}x"},
            {"x-api-key": "wrong"},
        ):
            for path, body in POSTS.items():
                answer = client.post(path, json=body, headers=headers)
                check(answer, path, 401)
                assert answer.headers["www-authenticate"] == "Bearer"
                assert KEY not in answer.text
        for headers in ({"Authorization": f"bearer {KEY}"}, {"api-key": KEY}, {"x-api-key": "another-key"}):
            assert client.post("/embed", json={"inputs": "the"}, headers=headers).status_code == 200


def test_without_a_key_only_this_machine_may_ask(client):
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::1].evil.example"):
        check(client.post("/embed", json={"inputs": "the"}, headers={"Host": host}), "/embed", 421)
    for host in ("localhost", "localhost:80", "127.0.0.1", "[::1]:80"):
        assert client.post("/embed", json={"inputs": "the"}, headers={"Host": host}).status_code == 200
    check(client.post("/embed", json={"inputs": "the"}, headers={"Sec-Fetch-Site": "cross-site"}), "/embed", 403)


def test_limits(keyed):
    check(keyed.post("/embed", json={"inputs": words(2999)}), "/embed", 413)
    assert "3,000" in check(keyed.post("/embed", json={"inputs": [words(1000)] * 4}), "/embed", 413)
    check(keyed.post("/late-chunks", json={"text": words(4000)}), "/late-chunks", 413)
    check(keyed.post("/embed", json={"inputs": ["the"] * 21}), "/embed", 422)
    check(keyed.post("/embed", json={"inputs": "a" * 300_000}), "/embed", 413)


def test_too_much_waits(start_server):
    server = start_server(waiting_tokens=20_000, request_tokens=20_000)
    with server.client() as client:
        statuses = []

        def ask(count):
            answer = client.post("/embed", json={"inputs": words(count)})
            statuses.append(answer.status_code)
            if answer.status_code == 429:
                assert 1 <= int(answer.headers["retry-after"]) <= 120
                check(answer, "/embed", 429)

        threads = [threading.Thread(target=ask, args=(15_000,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(statuses) == {200, 429}
        # What was refused left nothing behind.
        assert client.post("/embed", json={"inputs": words(15_000)}).status_code == 200


def raw(server, *parts, wait=5.0, pause=0.0):
    """What the server answers to bytes, sent in parts."""
    with socket.create_connection(server.address, timeout=wait) as connection:
        answer = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
        except (BrokenPipeError, ConnectionResetError):
            pass
        try:
            while piece := connection.recv(65_536):
                answer += piece
                if b"}" in piece:
                    break
        except (TimeoutError, ConnectionResetError):
            pass
        return answer


def head(path="/embed", **headers):
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {KEY}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def test_a_body_of_a_gigabyte_is_refused_before_it_is_read(keyed_server):
    start = time.monotonic()
    answer = raw(keyed_server, head(Content_Length=2**30))
    assert b" 413 " in answer
    assert b"1,073,741,824" in answer
    assert time.monotonic() - start < 3
    # One that does not say how long it is: refused when it has grown too long.
    chunk = b"10000\r\n" + b"a" * 65_536 + b"\r\n"
    assert b" 413 " in raw(keyed_server, head(Transfer_Encoding="chunked"), *[chunk] * 5)


def test_a_client_that_sends_one_byte_a_second(keyed_server):
    body = b'{"inputs": "the"}'
    start = time.monotonic()
    answer = raw(keyed_server, head(Content_Length=len(body)), *(body[i : i + 1] for i in range(4)), pause=1.0, wait=8)
    assert b" 408 " in answer
    assert time.monotonic() - start < 10


def test_headers_that_are_none(keyed_server):
    for bad in (
        b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
        b"GET /embed\r\nX HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ):
        answer = raw(keyed_server, bad)
        assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 401", b""), answer
        assert b"Traceback" not in answer


def test_nothing_of_a_client_comes_back_in_a_header(client):
    answer = client.post("/embed", json={"inputs": "the", "prompt_name": "x\r\nSet-Cookie: a=b"})
    assert answer.status_code == 422
    assert "set-cookie" not in answer.headers
    answer = client.get("/v1/models/x%0d%0aSet-Cookie:%20a=b")
    assert answer.status_code == 404
    assert "set-cookie" not in answer.headers


def test_the_access_log_holds_no_text_and_no_session(client, caplog):
    logger = logging.getLogger("lam.access")
    logger.propagate = True
    logger.setLevel(logging.INFO)
    with caplog.at_level(logging.INFO, "lam.access"):
        client.post("/embed", json={"inputs": "the secret house"})
        client.post("/embed?secret=1", json={"inputs": ["the", ""]})
        session = client.post("/sessions", json={}).json()["id"]
        client.get(f"/sessions/{session}/embedding")
        client.delete(f"/sessions/{session}")
        time.sleep(0.1)
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "lam.access"]
    assert len(lines) == 5
    assert lines[0]["tokens"] == 12 or lines[0]["tokens"] > 3
    assert [line["status"] for line in lines] == [200, 400, 201, 200, 204]
    assert lines[1]["error"] == "empty"
    assert lines[3]["path"] == "/sessions/{session_id}/embedding"
    assert "secret" not in str(lines)
    assert session not in str(lines)
