"""Who may see what of a memory over HTTP: keys, their scopes, and what happens without one."""

import json
import logging

import pytest

from lam_transformers.memories import Keys, Memory, MemoryFileDamaged, MemoryFileRefused, Scope
from lam_transformers.serving.settings import Settings

pytest.importorskip("fastapi", reason="the serve extra is not installed")
from lam_transformers.serving.app import create_app
from lam_transformers.serving.memory_service import PATHS, check_memory

SCHEMA = create_app(Settings(model="tiny-lam", memory="memory.db")).openapi()
OPERATIONS = sorted(
    (method.upper(), path)
    for path, methods in SCHEMA["paths"].items()
    if path.split("/")[1] in PATHS
    for method in methods
)
# A body for each endpoint that takes one; an endpoint that is missing here fails its test.
BODIES = {
    ("POST", "/memories"): {"messages": "The dog runs."},
    ("PUT", "/memories/{memory_id}"): {"text": "The dog runs."},
    ("POST", "/search"): {"query": "zebra secret dog", "top_k": 1000, "explain": True},
    ("POST", "/documents"): {"text": "The dog runs.", "title": "Dogs"},
    ("POST", "/conversations"): {"messages": [{"role": "user", "content": "The dog runs."}], "run_id": "chat"},
}
SECRET = "zebra"


def ask(client, method, path, ids=None, body=None, **query):
    for name in ("memory_id", "document_id"):
        path = path.replace(f"{{{name}}}", (ids or {}).get(name, "unknown"))
    if method in ("POST", "PUT"):
        return client.request(method, path, json=body, params=query)
    return client.request(method, path, params=query)


def body_of(method, path, **names):
    return BODIES[method, path] | names if method in ("POST", "PUT") else None


@pytest.fixture(scope="module")
def theirs(memory_server, memory_place):
    """Ids of what belongs to Bob."""
    with Memory(memory_place, model=None) as memory:
        keys = Keys(memory.store)
        key = keys.add("bob", Scope("bob"))
    with memory_server.client(headers={"Authorization": f"Bearer {key}"}) as bob:
        fact = bob.post("/memories", json={"messages": f"The {SECRET} is secret."}).json()["results"][0]
        bob.put(f"/memories/{fact['id']}", json={"text": f"The {SECRET} is a secret dog."})
        turns = [{"role": "user", "content": f"A {SECRET} in the house."}]
        bob.post("/conversations", json={"messages": turns, "run_id": "chat"})
        document = bob.post("/documents", json={"text": f"One {SECRET}.\n\nTwo {SECRET}s.", "title": SECRET}).json()
        everything = bob.get("/memories").json()
        yield {"memory_id": fact["id"], "document_id": document["id"]}
        # Whatever was tried, all of it is as it was.
        assert bob.get("/memories").json() == everything


def test_every_operation_is_tried():
    assert len(OPERATIONS) == 19


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_another_users_data_never_appears(client_for, user, theirs, nothing_shared_is_left, method, path):
    needs_run = {"run_id": "chat"} if path.startswith("/conversations") and method != "POST" else {}
    for names in ({"user_id": user}, {"user_id": user, "agent_id": "robot"}, {"agent_id": "robot"}, {}):
        client = client_for(**names)
        answers = [
            ask(client, method, path, theirs, body_of(method, path) if method in ("POST", "PUT") else None, **needs_run)
        ]
        # Whoever names Bob is refused, in the query or in the body.
        for foreign in ({"user_id": "bob"}, {"user_id": "bob", "agent_id": "robot"}):
            if method == "POST":
                answer = ask(client, method, path, theirs, body_of(method, path, **foreign))
            else:
                answer = ask(client, method, path, theirs, body_of(method, path), **foreign, **needs_run)
            assert answer.status_code == 403, answer.text
            answers.append(answer)
        for answer in answers:
            assert SECRET not in answer.text
            assert answer.status_code < 500
        if "{" in path:
            # A foreign id and one that does not exist are told apart by nothing.
            unknown = ask(client, method, path, {}, body_of(method, path), **needs_run)
            assert answers[0].status_code == unknown.status_code == 404
            foreign_id = next(iter(theirs.values())) if "memory_id" in path else theirs["document_id"]
            assert answers[0].text.replace(foreign_id, "unknown") == unknown.text


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_way_in_without_a_key(memory_server, memory_place, theirs, method, path):
    with Memory(memory_place, model=None) as memory:
        keys = Keys(memory.store)
        name = f"revoked {method} {path}"
        revoked = keys.add(name, Scope("bob"))
        keys.revoke(name)
    with memory_server.client() as client:
        for headers in (
            {},
            {"Authorization": f"Bearer {revoked}"},
            {"X-API-Key": "wrong"},
            {"X-API-Key": "lam-"},
            {"Authorization": "Bearer ' OR 1=1 --"},
            {"Authorization": "Bearer \u00e9".encode("latin-1")},
        ):
            client.headers = headers
            answer = ask(client, method, path, theirs, body_of(method, path), user_id="bob")
            assert answer.status_code == 401, answer.text
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "lam memory keys add" in answer.json()["error"]
            assert SECRET not in answer.text


def test_a_list_of_conversations_ends_at_the_scope(client_for, user):
    def runs(client, **names):
        answer = client.get("/conversations/list", params=names)
        assert answer.status_code == 200, answer.text
        return [one["run_id"] for one in answer.json()["results"]]

    turn = {"messages": [{"role": "user", "content": "The dog."}]}
    ada = client_for(user_id=user)
    with_robot = client_for(user_id=user, agent_id="robot")
    robot = client_for(agent_id=f"{user} robot")
    one_run = client_for(user_id=user, run_id="first")
    ada.post("/conversations", json=turn | {"run_id": "first"})
    with_robot.post("/conversations", json=turn | {"run_id": "second"})
    robot.post("/conversations", json=turn | {"run_id": "its own"})
    assert runs(ada) == ["second", "first"]
    assert runs(with_robot) == ["second"]
    assert runs(robot) == ["its own"]
    assert runs(one_run) == ["first"]
    assert runs(client_for(user_id=f"{user} again")) == []
    assert not {"first", "second", "its own"} & set(runs(client_for()))
    assert runs(ada, run_id="second") == ["second"]
    assert runs(ada, run_id="its own") == []
    for names in ({"run_id": "second"}, {"user_id": "bob"}, {"agent_id": "robot"}):
        assert one_run.get("/conversations/list", params=names).status_code == 403


def test_what_an_assistant_keeps_for_itself(client_for, user):
    robot = client_for(agent_id=user)
    id = robot.post("/memories", json={"messages": "The red guitar is quick."}).json()["results"][0]["id"]
    question = {"query": "quick red guitar"}
    # The assistant at work for somebody sees it, whoever has only a user's key does not, and cannot ask for it.
    assert id in client_for(user_id="x", agent_id=user).post("/search", json=question).text
    ada = client_for(user_id="ada")
    assert id not in ada.post("/search", json=question).text
    assert ada.get(f"/memories/{id}").status_code == 404
    assert ada.post("/search", json=question | {"agent_id": user}).status_code == 403
    assert ada.post("/search", json=question | {"filters": {"agent_id": user}}).status_code == 403


def test_a_key_is_revoked_at_once(memory_server, memory_place, user):
    with Memory(memory_place, model=None) as memory:
        keys = Keys(memory.store)
        key = keys.add(user, Scope(user))
        with memory_server.client(headers={"api-key": key}) as client:
            assert client.get("/memories").status_code == 200
            keys.revoke(user)
            assert client.get("/memories").status_code == 401


def test_names_that_a_key_has_already(client_for, user):
    client = client_for(user_id=user, agent_id="robot", run_id="chat")
    for names in ({}, {"user_id": user}, {"user_id": user, "agent_id": "robot", "run_id": "chat"}):
        assert client.get("/memories", params=names).status_code == 200
    for names in ({"run_id": "other"}, {"agent_id": "other"}):
        answer = client.get("/memories", params=names)
        assert answer.status_code == 403
        assert next(iter(names)) in answer.json()["error"]
    client.post("/conversations", json={"messages": [{"role": "user", "content": "The dog."}]})
    (turn,) = client.get("/conversations").json()["results"]
    assert (turn["user_id"], turn["agent_id"], turn["run_id"]) == (user, "robot", "chat")


def test_a_server_with_keys_of_its_own(start_server, tmp_path):
    place = tmp_path / "memory.db"
    with Memory(place, model=None) as memory:
        key = Keys(memory.store).add("ada", Scope("ada"))
    server = start_server(memory=str(place), api_keys=("the-servers",))
    embed = {"inputs": "the"}
    with server.client(headers={"Authorization": f"Bearer {key}"}) as client:
        assert client.get("/memories").status_code == 200
        assert client.post("/embed", json=embed).status_code == 401
        assert client.get("/memory").status_code == 200
    with server.client(headers={"Authorization": "Bearer the-servers"}) as client:
        assert client.get("/memories").status_code == 401
        assert client.post("/embed", json=embed).status_code == 200


def test_open_to_this_machine_until_there_is_a_key(start_server, tmp_path):
    place = tmp_path / "memory.db"
    server = start_server(memory=str(place), memory_open=True, api_keys=("the-servers",))
    with server.client() as client:
        for name in ("ada", "bob"):
            client.post("/memories", json={"messages": f"The dog of {name}.", "user_id": name})
        (item,) = client.get("/memories", params={"user_id": "ada"}).json()["results"]
        assert item["memory"] == "The dog of ada."
        # An id alone is not enough: it is always asked for in a scope.
        assert client.get(f"/memories/{item['id']}", params={"user_id": "ada"}).status_code == 200
        for names in ({}, {"user_id": "bob"}):
            assert client.get(f"/memories/{item['id']}", params=names).status_code == 404
        assert client.get("/memories", headers={"Host": "evil.example"}).status_code == 421
        for site in ("cross-site", "same-site"):
            assert client.get("/memories", headers={"Sec-Fetch-Site": site}).status_code == 403
        assert client.get("/memories", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200
        with Memory(place, model=None) as memory:
            keys = Keys(memory.store)
            keys.add("phone", Scope("ada"))
            assert client.get("/memories", params={"user_id": "ada"}).status_code == 401
            keys.revoke("phone")
            assert client.get("/memories", params={"user_id": "ada"}).status_code == 401


def test_what_is_said_before_the_start(tmp_path):
    def settings(**options):
        return Settings(model="tiny-lam", **options)

    place = tmp_path / "memory.db"
    assert check_memory(settings(), "0.0.0.0") is None
    assert "no key yet" in check_memory(settings(memory=str(place)), "127.0.0.1")
    assert "without a key" in check_memory(settings(memory=str(place), memory_open=True), "127.0.0.1")
    with pytest.raises(ValueError, match="need --memory"):
        check_memory(settings(memory_open=True), "127.0.0.1")
    with pytest.raises(ValueError, match=r"--host 0\.0\.0\.0 can be reached by others"):
        check_memory(settings(memory=str(place), memory_open=True), "0.0.0.0")
    with Memory(place, model=None) as memory:
        Keys(memory.store).add("phone", Scope("ada"))
    assert check_memory(settings(memory=str(place)), "127.0.0.1") is None
    with pytest.raises(ValueError, match="has keys"):
        check_memory(settings(memory=str(place), memory_open=True), "127.0.0.1")


def test_a_damaged_file_is_refused_before_the_start(tmp_path):
    place = tmp_path / "memory.db"
    with Memory(place, model=None) as memory:
        for i in range(100):
            memory.add(f"Memory {i} {'lorem ipsum ' * 20}", user_id="ada")
        memory.forget()
    whole = place.read_bytes()
    for damaged in (
        whole[:50],
        whole[: len(whole) // 2],
        whole[:8192] + bytes(4096) + whole[12288:],
        b"no memory" * 99,
    ):
        place.write_bytes(damaged)
        with pytest.raises((MemoryFileDamaged, MemoryFileRefused), match=r"memory\.db"):
            check_memory(Settings(model="tiny-lam", memory=str(place)), "127.0.0.1")


def test_lam_serve_refuses_a_damaged_file_in_one_line(tmp_path):
    from typer.testing import CliRunner

    from lam_transformers.cli import app

    place = tmp_path / "memory.db"
    place.write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    ended = CliRunner().invoke(app, ["serve", "tiny-lam", "--memory", str(place)])
    assert ended.exit_code == 1
    assert "memory.db" in ended.output
    assert "Traceback" not in ended.output


def test_nothing_of_a_memory_is_in_the_access_log(ada, user, caplog):
    with caplog.at_level(logging.INFO, logger="lam.access"):
        id = ada.post("/memories", json={"messages": "The dog.", "run_id": "chat"}).json()["results"][0]["id"]
        ada.get(f"/memories/{id}", params={"run_id": "chat"})
        ada.get("/memories/nothing")
        ada.post("/search", json={"query": "guitar"})
    lines = [record.getMessage() for record in caplog.records if record.name == "lam.access"]
    assert len(lines) == 4
    assert [json.loads(line)["path"] for line in lines][1:3] == ["/memories/{memory_id}"] * 2
    for secret in (id, user, "chat", "dog", "guitar", ada.headers["X-API-Key"]):
        assert not any(secret in line for line in lines)


def test_there_is_one_copy_of_the_weights(memory_server):
    service = memory_server.service
    assert service.memory._reader.parts.lam.embeddings is service.model.transformers_model.embeddings


def test_another_model_than_a_lam_has_no_memory(padded_folder, tmp_path):
    from lam_transformers.serving.metrics import Metrics
    from lam_transformers.serving.service import Service

    service = Service(Settings(model=str(padded_folder), memory=str(tmp_path / "memory.db")), Metrics())
    with pytest.raises(ValueError, match="--memory needs a LAM"):
        service.load()
    assert not service.ready
    service.stop()


def test_the_file_of_the_interface():
    paths = create_app(Settings(model="tiny-lam")).openapi()["paths"]
    assert not any(path.split("/")[1] in PATHS for path in paths)
