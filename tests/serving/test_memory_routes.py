"""A memory over HTTP: what each endpoint does for whoever may use it."""

import base64
import threading

import numpy as np
import pytest

from lam_transformers.memories import Memory

from .serving_texts import sentences, words

pytest.importorskip("fastapi", reason="the serve extra is not installed")

EXACT = 1e-6
TALK = [
    {"role": "user", "content": "The old man plays guitar.", "timestamp": "2026-05-03T10:00:00Z", "id": "first"},
    {"role": "assistant", "content": "In the house or on the street?"},
]


def memories(answer) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["memory"] for item in answer.json()["results"]]


def test_a_memory_from_its_writing_to_its_end(ada, user):
    written = ada.post("/memories", json={"messages": "The dog sleeps.", "metadata": {"from": "me"}})
    (item,) = written.json()["results"]
    place = f"/memories/{item['id']}"
    assert (item["memory"], item["user_id"], item["version"]) == ("The dog sleeps.", user, 1)
    assert ada.get(place).json() == item
    changed = ada.put(place, json={"text": "The dog runs."})
    assert (changed.json()["version"], changed.json()["metadata"]) == (2, {"from": "me"})
    versions = ada.get(f"{place}/history").json()
    assert [(v["event"], v["old_memory"], v["new_memory"]) for v in versions] == [
        ("ADD", None, "The dog sleeps."),
        ("UPDATE", "The dog sleeps.", "The dog runs."),
    ]
    assert versions[0]["superseded"] == versions[1]["time"]
    assert memories(ada.get("/memories")) == ["The dog runs."]
    assert memories(ada.post("/search", json={"query": "dog", "top_k": 1})) == ["The dog runs."]
    assert memories(ada.post("/search", json={"query": "dog", "as_of": versions[0]["time"]})) == ["The dog sleeps."]
    assert ada.delete(place).json() == {"message": "Forgotten.", "deleted": 1}
    for answer in (ada.get(place), ada.delete(place), ada.get(f"{place}/history"), ada.get(f"{place}/events")):
        assert answer.status_code == 404
        assert "There is no memory" in answer.json()["error"]
    assert memories(ada.get("/memories")) == []


def test_a_fact_supersedes_its_older_value(ada):
    for place in ("red", "green"):
        ada.post("/memories", json={"messages": f"The house is {place}.", "key": "colour"})
    (item,) = ada.get("/memories").json()["results"]
    assert (item["memory"], item["key"], item["version"]) == ("The house is green.", "colour", 2)


def test_messages_as_mem0_sends_them(ada):
    body = {"messages": TALK, "run_id": "chat", "metadata": {"topic": "music"}, "infer": True}
    assert memories(ada.post("/memories", json=body)) == [message["content"] for message in TALK]
    items = ada.get("/memories", params={"run_id": "chat", "kinds": "turn"}).json()["results"]
    assert [(item["role"], item["position"], item["metadata"]) for item in items] == [
        ("user", 0, {"topic": "music"}),
        ("assistant", 1, {"topic": "music"}),
    ]
    assert items[0]["time"].startswith("2026-05-03T10:00:00")
    one = {"role": "user", "content": "On the street."}
    assert memories(ada.post("/memories", json={"messages": one, "run_id": "chat"})) == ["On the street."]
    assert memories(ada.post("/search", json={"query": "street", "filters": {"run_id": "chat"}, "limit": 1}))


def test_a_search_explains_itself_and_recall_makes_stronger(ada):
    ada.post("/memories", json={"messages": "The river is old."})
    for _ in range(2):
        (item,) = ada.post("/search", json={"query": "old river", "explain": True}).json()["results"]
    parts = item["parts"]
    assert item["score"] == pytest.approx(
        sum(parts[name] for name in ("vectors", "words", "personal", "said", "strength"))
    )
    assert parts["cosine alone"] > 0
    happened = ada.get(f"/memories/{item['id']}/events").json()
    assert [event["kind"] for event in happened] == ["added", "strength", "recalled", "recalled"]
    assert happened[1]["slow"] < happened[2]["slow"] < happened[3]["slow"] or happened[1]["slow"] == 1
    assert happened[3]["recalls"] == 2
    # In one session nothing fades.
    assert (happened[3]["fast_before"], happened[3]["slow_before"]) == (1.0, happened[2]["slow"])
    assert "fast_before" not in happened[1]
    assert memories(ada.post("/search", json={"query": "old river", "threshold": item["score"] + 1})) == []


def test_documents(ada, client_for, user):
    text = "# The house\n\nThe dog sleeps in it.\n\nThe river is near."
    document = ada.post("/documents", json={"text": text, "title": "Home"}).json()
    assert (document["memory"], document["kind"], document["version"]) == ("Home", "document", 1)
    place = f"/documents/{document['id']}"
    assert ada.post("/documents", json={"text": text, "title": "Home"}).json() == document
    changed = ada.post("/documents", json={"text": text + "\n\nA cat sings.", "title": "Home"}).json()
    assert (changed["id"], changed["version"]) == (document["id"], 2)
    assert memories(ada.get("/documents")) == ["Home"]
    assert ada.get(place).json() == changed
    whole = ada.get(f"{place}/text")
    assert whole.headers["content-type"] == "text/plain; charset=utf-8"
    assert whole.text == text + "\n\nA cat sings."
    (best, *_) = ada.post("/search", json={"query": "cat sings", "kinds": ["paragraph"]}).json()["results"]
    assert whole.text[best["start"] : best["end"]] == best["memory"] == "A cat sings."
    # A memory is no document, and a paragraph goes with its document.
    memory = ada.post("/memories", json={"messages": "The dog."}).json()["results"][0]["id"]
    for answer in (
        ada.get(f"/documents/{memory}"),
        ada.get(f"/documents/{memory}/text"),
        ada.delete(f"/documents/{memory}"),
    ):
        assert answer.status_code == 404
    assert ada.delete(f"/memories/{best['id']}").status_code == 422
    assert ada.delete(place).status_code == 200
    assert memories(ada.get("/documents")) == []
    assert memories(ada.get("/memories")) == ["The dog."]


def test_what_is_shared_is_read_by_all_and_written_by_its_own_key(ada, client_for):
    title = f"Shared {words(3)} {id(ada)}"
    shared = client_for()
    document = shared.post("/documents", json={"text": f"The quick guitar is green.\n\n{title}", "title": title}).json()
    place = f"/documents/{document['id']}"
    assert title in memories(ada.get("/documents", params={"shared": True}))
    assert ada.get(f"{place}/text").text.endswith(title)
    assert any(title in text for text in memories(ada.post("/search", json={"query": "quick green guitar"})))
    # That it cannot be changed is no secret, since it can be read.
    for answer in (ada.delete(place), ada.delete(f"/memories/{document['id']}")):
        assert (answer.status_code, answer.json()["error_type"]) == (403, "forbidden")
    assert shared.delete("/memories").status_code == 422
    assert shared.delete(place).status_code == 200


def test_conversations(ada, memory_server, serving_model):
    body = {"messages": TALK, "run_id": "a/b c"}
    assert memories(ada.post("/conversations", json=body)) == [message["content"] for message in TALK]
    assert memories(ada.post("/conversations", json=body))[0] == TALK[0]["content"]
    turns = ada.get("/conversations", params={"run_id": "a/b c"})
    assert memories(turns) == [TALK[0]["content"], TALK[1]["content"], TALK[1]["content"]]
    assert memories(ada.get("/conversations", params={"run_id": "a/b c", "limit": 1, "offset": 1})) == [
        TALK[1]["content"]
    ]
    gist = ada.get("/conversations/gist", params={"run_id": "a/b c"}).json()["embedding"]
    want = serving_model.encode("\n\n".join(memories(turns)))
    assert abs(np.array(gist, np.float32) - want).max() < EXACT
    packed = ada.get("/conversations/gist", params={"run_id": "a/b c", "encoding_format": "base64"}).json()["embedding"]
    assert abs(np.frombuffer(base64.b64decode(packed), "<f4") - want).max() < EXACT
    assert ada.get("/conversations/gist", params={"run_id": "other"}).status_code == 404
    for answer in (
        ada.get("/conversations"),
        ada.post("/conversations", json={"messages": TALK}),
        ada.delete("/conversations"),
    ):
        assert answer.status_code == 422
        assert "run_id" in answer.json()["error"]
    ada.post("/memories", json={"messages": "The dog."})
    assert ada.delete("/conversations", params={"run_id": "a/b c"}).json()["deleted"] == 3
    assert memories(ada.get("/memories")) == ["The dog."]
    assert ada.delete("/memories").json()["deleted"] == 1


def test_conversations_are_listed_with_their_turns_and_times(ada, user):
    for run, second in (("a/b c", 0), ("other", 30), (None, 10)):
        turns = [
            {"role": "user", "content": f"Turn {i}.", "timestamp": f"2026-05-03T10:00:{second + i:02}Z"}
            for i in range(3)
        ]
        ada.post("/conversations" if run else "/memories", json={"messages": turns} | ({"run_id": run} if run else {}))
    ada.post("/memories", json={"messages": "No turn at all."})
    listed = ada.get("/conversations/list").json()["results"]
    assert [one["run_id"] for one in listed] == ["other", None, "a/b c"]
    assert listed[0] == {
        "user_id": user,
        "agent_id": None,
        "run_id": "other",
        "turns": 3,
        "first_time": "2026-05-03T10:00:30+00:00",
        "last_time": "2026-05-03T10:00:32+00:00",
    }
    pages = [
        ada.get("/conversations/list", params={"limit": 1, "offset": offset}).json()["results"] for offset in range(4)
    ]
    assert pages == [[one] for one in listed] + [[]]
    # A corrected turn is the same turn, a forgotten one is gone, and so is a conversation without turns.
    turns = ada.get("/conversations", params={"run_id": "a/b c"}).json()["results"]
    ada.put(f"/memories/{turns[0]['id']}", json={"text": "Turn zero."})
    assert ada.get("/conversations/list").json()["results"] == listed
    ada.delete(f"/memories/{turns[2]['id']}")
    (one,) = ada.get("/conversations/list", params={"run_id": "a/b c"}).json()["results"]
    assert (one["turns"], one["last_time"]) == (2, "2026-05-03T10:00:01+00:00")
    ada.delete("/conversations", params={"run_id": "other"})
    assert [one["run_id"] for one in ada.get("/conversations/list").json()["results"]] == [None, "a/b c"]


def test_the_vectors_are_those_of_the_model(ada, user, memory_server, memory_place, serving_folder):
    texts = ["The dog sleeps.", words(400), words(3000)]
    for text in texts:
        ada.post("/memories", json={"messages": text})
    ada.post("/conversations", json={"messages": [{"role": "user", "content": text} for text in texts], "run_id": "c"})
    # Another process of the same model has nothing to say against them.
    with Memory(memory_place, model=str(serving_folder)) as memory:
        assert memory.verify() == []
        assert memory.engine.model_fits()
        with memory.store.read() as transaction:
            rows = transaction.rows(
                "SELECT m.text, v.alone, v.carried, m.kind FROM memories m JOIN vectors v ON v.row_id = m.row_id "
                "WHERE m.user_id = ? ORDER BY m.row_id",
                user,
            )
        readings = memory.reader.read([row[0] for row in rows])
        for row, reading in zip(rows, readings, strict=True):
            assert abs(np.frombuffer(row[1], "<f4") - reading.alone).max() < EXACT
        conversation = memory.reader.new_conversation()
        for row in rows[3:]:
            carried = memory.reader.add_turn(conversation, row[0])
            assert abs(np.frombuffer(row[2], "<f4") - carried).max() < EXACT


def test_a_search_passes_by_a_long_text(ada, memory_server):
    ada.post("/memories", json={"messages": "The cat sings."})
    document = ". ".join(sentences(4000))
    done = []
    thread = threading.Thread(
        target=lambda: done.append(ada.post("/documents", json={"text": document, "title": "Long"}).status_code)
    )
    thread.start()
    searched = 0
    with memory_server.client(headers=ada.headers) as other:
        while not done and searched < 50:
            assert memories(other.post("/search", json={"query": f"cat {searched}", "kinds": ["memory"]}))
            searched += not done
    thread.join()
    assert done == [200]
    assert searched >= 2


def test_requests_at_once_lose_nothing(ada):
    def work(i):
        for j in range(4):
            ada.post("/conversations", json={"messages": [{"role": "user", "content": f"Turn {i} {j}"}], "run_id": "c"})
            ada.post("/search", json={"query": "turn"})

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    turns = ada.get("/conversations", params={"run_id": "c"}).json()["results"]
    assert sorted(turn["position"] for turn in turns) == list(range(16))
    assert len({turn["memory"] for turn in turns}) == 16
