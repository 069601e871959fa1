"""LlamaIndex: a block of its memory that remembers what falls out of the short-term memory."""

import asyncio

import pytest

from ..helpers import require

require("llama_index.core", "llama-index")
import llama_index_memory
from llama_index.core.llms import ChatMessage

from lam_transformers.integrations.llama_index import LAMMemoryBlock
from lam_transformers.memories import Memory as LAMMemory


@pytest.fixture
def kept(tmp_path):
    with LAMMemory(tmp_path / "memory.db", model=None) as memory:
        yield memory


def block(memory, user="ada", **options):
    return LAMMemoryBlock(memory=memory, user_id=user, **options)


def said(content, role="user"):
    return ChatMessage(role=role, content=content)


def ask(one, *messages):
    return asyncio.run(one.aget([said(message) for message in messages]))


def put(one, *messages, session="chat"):
    asyncio.run(one.aput(list(messages), from_short_term_memory=True, session_id=session))


def test_messages_are_found_again_in_other_sessions(kept):
    one = block(kept)
    put(one, said("I drink tea in the morning."), said("Noted.", "assistant"), session="one")
    put(one, said("My dog is called Rex."), session="two")
    assert ask(one, "what about tea?").splitlines()[0].endswith("I drink tea in the morning.")
    assert ask(one, "Rex?").endswith(", user: My dog is called Rex.")
    assert ask(one, "what about tea?", "and Rex?").endswith("Rex.")
    assert (ask(one), ask(one, "  "), ask(one, "zeppelin")) == ("", "", "")
    assert {record.run_id for record in kept.list(user_id="ada")} == {"one", "two"}


def test_users_are_kept_apart(kept):
    users = ["ada", "ben", "a/b", "'; DROP TABLE memories; --", '"', "a.b", "ü💡"]
    for user in users:
        put(block(kept, user), said(f"tea of {users.index(user)}"), session="the same")
    for user in users:
        assert ask(block(kept, user, top_k=50), "tea").split(": ")[1:] == [f"tea of {users.index(user)}"]


def test_assistants(kept):
    put(block(kept, agent_id="cook"), said("tea with milk"))
    assert ask(block(kept, agent_id="clerk"), "tea") == ""
    assert "milk" in ask(block(kept, agent_id="cook"), "tea")


def test_messages_without_text_are_left_out(kept):
    put(block(kept), ChatMessage(role="assistant", blocks=[]), said(" "))
    assert kept.list(user_id="ada") == []


def test_what_does_not_fit_is_refused(kept):
    with pytest.raises(ValueError, match="must be a lam_transformers"):
        block("memory.db")
    with pytest.raises(ValueError, match="user_id has 10,000 characters"):
        block(kept, "a" * 10_000)
    with pytest.raises(ValueError, match="top_k"):
        block(kept, top_k=0)


def test_the_worst_are_left_out_first(kept):
    one = block(kept)
    assert asyncio.run(one.atruncate("2026-01-01: best\n2026-01-01: worst", 2)) == "2026-01-01: best"
    assert asyncio.run(one.atruncate("2026-01-01: best", 100)) is None


def test_the_memory_of_the_example_waterfalls(kept):
    memory = llama_index_memory.build_memory(kept, "ada", "chat")
    memory.put(said("My sister Vera keeps bees behind the old mill."))
    memory.put(said("Then you will never be short of honey.", "assistant"))
    for day in ("Monday", "Tuesday", "Wednesday", "Thursday"):
        memory.put(said(f"On {day} I have to go to the dentist at nine, remind me."))
        memory.put(said(f"I will remind you of the dentist on {day}.", "assistant"))
    assert "bees" in {word for record in kept.list(user_id="ada") for word in record.text.split()}
    shown = memory.get(input="Who keeps bees?")
    assert shown[0].role.value == "system"
    assert "Vera keeps bees" in shown[0].content
    assert all("Vera" not in message.content for message in shown[1:])
    other = llama_index_memory.build_memory(kept, "ben", "chat-of-ben")
    assert all("Vera" not in message.content for message in other.get(input="Who keeps bees?"))


def test_documented_code(run_documented):
    assert "Vera keeps bees" in run_documented("LlamaIndex: memory block")
