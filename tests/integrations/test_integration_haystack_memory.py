"""Haystack: a memory store as its protocol has it, and pipelines that write and read it."""

import inspect

import pytest

from ..helpers import require

require("haystack", "haystack")
import haystack_memory
from haystack import Pipeline
from haystack.dataclasses import ChatMessage

from lam_transformers.integrations.haystack import LAMMemoryRetriever, LAMMemoryStore, LAMMemoryWriter
from lam_transformers.memories import UnknownMemory

TEA = ChatMessage.from_user("I drink tea in the morning.", meta={"topic": "drinks", "n": 3})


@pytest.fixture
def store(tmp_path):
    store = LAMMemoryStore(str(tmp_path / "memory.db"), model=None)
    yield store
    store.memory.close()


def texts(messages):
    return [message.text for message in messages]


def test_messages_come_back_with_what_is_known_of_them(store):
    added = store.add_memories(messages=[TEA, ChatMessage.from_assistant("Noted.")], user_id="ada", run_id="chat")
    (found,) = store.search_memories(query="tea", user_id="ada")
    assert found.text == TEA.text
    assert found.role.value == "system"
    assert (found.meta["topic"], found.meta["n"]) == ("drinks", 3)
    known = found.meta["memory"]
    assert known["memory_id"] == added[0]["memory_id"]
    assert known["score"] > 0
    assert (known["role"], known["user_id"], known["run_id"]) == ("user", "ada", "chat")


def test_without_a_question_the_latest_come_first(store):
    store.add_memories(messages=[ChatMessage.from_user(f"number {i}") for i in range(8)], user_id="ada")
    assert texts(store.search_memories(user_id="ada", top_k=3)) == ["number 7", "number 6", "number 5"]
    assert len(store.search_memories(user_id="ada")) == 5


def test_filters_come_before_the_ranking(store):
    store.add_memories(
        messages=[ChatMessage.from_user("tea tea", meta={"n": i}) for i in range(60)] + [TEA], user_id="ada"
    )
    wanted = {"field": "meta.topic", "operator": "==", "value": "drinks"}
    assert texts(store.search_memories(query="tea", filters=wanted, user_id="ada", top_k=1)) == [TEA.text]
    either = {"operator": "OR", "conditions": [wanted, {"field": "meta.n", "operator": "<", "value": 2}]}
    assert len(store.search_memories(query="tea", filters=either, user_id="ada", top_k=9)) in (2, 3)
    assert len(store.search_memories(filters=either, user_id="ada", top_k=9)) == 3


def test_messages_without_text_are_left_out_and_known_ones_not_added_again(store):
    assert store.add_memories(messages=[ChatMessage.from_user("  ")], user_id="ada") == []
    message = ChatMessage.from_user("tea", meta={"id": "m1", "timestamp": "2026-05-03T10:00:00Z"})
    store.add_memories(messages=[message], user_id="ada")
    store.add_memories(messages=[message], user_id="ada")
    (found,) = store.search_memories(user_id="ada")
    assert found.meta["memory"]["time"].startswith("2026-05-03T10:00")


ODD = ["a/b", "'; DROP TABLE memories; --", '"', "..\\", "%", "ü💡", "a.b"]


def test_users_are_kept_apart(store):
    users = ["ada", "ben", *ODD]
    for user in users:
        store.add_memories(messages=[ChatMessage.from_user(f"tea of {users.index(user)}")], user_id=user, run_id="chat")
    for user in users:
        mine = [f"tea of {users.index(user)}"]
        assert texts(store.search_memories(query="tea", user_id=user, top_k=50)) == mine
        assert texts(store.search_memories(user_id=user, top_k=50)) == mine
        everything = {"field": "meta.memory.user_id", "operator": "!=", "value": "nobody"}
        assert texts(store.search_memories(query="tea", filters=everything, user_id=user, top_k=50)) == mine
    (found,) = store.search_memories(user_id="ada")
    for owner in ({"user_id": "ben"}, {"agent_id": "ada"}, {"user_id": "ben", "agent_id": "ada"}):
        with pytest.raises(UnknownMemory):
            store.delete_memory(found.meta["memory"]["memory_id"], **owner)
    store.delete_all_memories(user_id="ben")
    assert store.search_memories(user_id="ben") == []
    store.delete_memory(found.meta["memory"]["memory_id"], user_id="ada")
    assert store.search_memories(user_id="ada") == []
    assert len(store.search_memories(user_id=ODD[0])) == 1


def test_conversations_and_assistants(store):
    for run in ("one", "two"):
        store.add_memories(messages=[ChatMessage.from_user(f"tea in {run}")], user_id="ada", run_id=run)
    assert texts(store.search_memories(query="tea", user_id="ada", run_id="two")) == ["tea in two"]
    store.delete_all_memories(user_id="ada", run_id="one")
    assert texts(store.search_memories(query="tea", user_id="ada")) == ["tea in two"]


def test_nobodys_memories_are_refused(store):
    for call in (
        lambda: store.add_memories(messages=[TEA]),
        lambda: store.add_memories(messages=[TEA], run_id="chat"),
        lambda: store.search_memories(query="tea"),
        lambda: store.delete_all_memories(),
        lambda: store.delete_memory("x"),
    ):
        with pytest.raises(ValueError, match="user_id or an agent_id"):
            call()
    with pytest.raises(ValueError, match="user_id has 10,000 characters"):
        store.search_memories(query="tea", user_id="a" * 10_000)
    with pytest.raises(TypeError, match="infer"):
        store.add_memories(messages=[TEA], user_id="ada", infer=True)


def test_a_pipeline_survives_its_yaml(store):
    pipeline = Pipeline()
    pipeline.add_component("writer", LAMMemoryWriter(store))
    pipeline.add_component("retriever", LAMMemoryRetriever(store, top_k=2))
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=["lam_transformers.integrations.haystack"])
    written = again.run({"writer": {"messages": [TEA], "user_id": "ada"}, "retriever": {"user_id": "ben"}})
    assert written["writer"]["memories_written"] == 1
    assert written["retriever"]["memories"] == []
    kept = again.get_component("retriever")
    assert (kept.top_k, kept.memory_store.place, kept.memory_store.model) == (2, store.place, None)
    assert texts(store.search_memories(query="tea", user_id="ada")) == [TEA.text]


def test_the_protocol_of_haystack_experimental(store):
    """Each method can be called with all that the protocol names."""
    types = pytest.importorskip("haystack_experimental.memory_stores.types")
    for name in ("to_dict", "from_dict", "add_memories", "search_memories", "delete_all_memories", "delete_memory"):
        theirs = inspect.signature(getattr(types.MemoryStore, name)).parameters
        ours = inspect.signature(getattr(LAMMemoryStore, name)).parameters
        assert set(theirs) - {"self", "kwargs"} <= set(ours) | {"self", "cls"}, name


def test_the_example(store):
    haystack_memory.build_writing(store).run({"writer": {"messages": [TEA], "user_id": "ada"}})
    pipeline = haystack_memory.build_recall(store)
    assert haystack_memory.recall(pipeline, "ada", "tea?") == [TEA.text]
    assert haystack_memory.recall(pipeline, "ben", "tea?") == []


def test_documented_code(run_documented):
    assert "Vera keeps bees" in run_documented("Haystack: memories")
