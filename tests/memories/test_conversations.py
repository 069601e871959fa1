"""A conversation is one text that grows: its state and its carried vectors are those of one replay."""

import contextlib
import dataclasses
import random

import numpy as np
import pytest

from lam_transformers.encoding import LAMEncoder, late_chunks
from lam_transformers.memories import Memory, UnknownMemory, conversations
from lam_transformers.memories.reading import Reader

TURNS = [
    "The dog runs in the house.", "A woman reads a book.", "ok", "Slowly, the old man sings in the street. " * 8,
    "The river is red.", "The cat eats and the child plays quickly. " * 3, "music",
]  # fmt: skip


def messages(texts):
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(texts)]


def state_of(memory, run_id="chat", user_id="ada"):
    from lam_transformers.memories.records import Scope

    with memory.store.read() as transaction:
        return conversations.state_of(memory.engine, transaction, Scope(user_id, "", run_id))


def carried_of(memory, user_id="ada"):
    memory.search("dog", user_id=user_id)
    partition = memory.partitions.get(user_id)
    order = [i for i in range(len(partition)) if np.isinf(partition.superseded[i])]
    return partition.carried[order]


def assert_same(a, b, bound=1e-6):
    assert a.turns == b.turns
    assert a.tail == b.tail
    for x, y in zip(a.state.memory, b.state.memory, strict=True):
        assert float((x - y).abs().max()) <= bound * max(1.0, float(y.abs().max()))


def replay(tmp_path, tiny_encoder, texts, name="replay.db"):
    memory = Memory(tmp_path / name, model=tiny_encoder)
    memory.add(messages(texts), user_id="ada", run_id="chat")
    return memory


def test_conversations_are_listed_with_their_turns_and_times(memory, clock):
    for user, agent, run in (("ada", None, "one"), ("ada", "helper", "one"), ("ada", None, "two"), (None, None, "one")):
        clock.seconds += 100
        memory.add(messages(TURNS[:2]), user_id=user, agent_id=agent, run_id=run)
    first, second, third = memory.conversations(user_id="ada")
    assert [(one.agent_id, one.run_id, one.turns) for one in (first, second, third)] == [
        (None, "two", 2), ("helper", "one", 2), (None, "one", 2)
    ]  # fmt: skip
    assert third.first_time < third.last_time < second.first_time
    clock.seconds += 100
    turn = memory.add(messages(["ok"]), user_id="ada", run_id="one")[0]
    memory.update(turn.id, "not ok")
    assert memory.conversations(user_id="ada", limit=1)[0] == dataclasses.replace(third, turns=3, last_time=turn.time)
    assert memory.conversations(user_id="ada", agent_id="helper") == [second]
    assert [one.run_id for one in memory.conversations(user_id="ada", limit=2, offset=1)] == ["two", "one"]
    assert [one.user_id for one in memory.conversations()] == [None]
    assert memory.conversations(user_id="bob") == []
    assert memory.within(user_id="ada", run_id="two").conversations() == [first]
    memory.delete_all(user_id="ada", run_id="two")
    assert first not in memory.conversations(user_id="ada")
    with pytest.raises(ValueError, match="limit"):
        memory.conversations(limit=-1)


def test_a_conversation_in_pieces_with_restarts_equals_one_replay(place, tmp_path, tiny_encoder, monkeypatch):
    monkeypatch.setattr(conversations, "STATE_EVERY", 16)
    for message in messages(TURNS):
        with Memory(place, model=tiny_encoder) as memory:
            memory.add([message], user_id="ada", run_id="chat")
    memory = Memory(place, model=tiny_encoder)
    whole = replay(tmp_path, tiny_encoder, TURNS)
    assert_same(state_of(memory), state_of(whole))
    assert np.abs(carried_of(memory) - carried_of(whole)).max() <= 1e-6
    gist = memory.gist(user_id="ada", run_id="chat")
    assert np.abs(gist - tiny_encoder.encode("\n\n".join(TURNS))).max() <= 1e-6
    assert memory.verify() == []


def test_turns_read_together_have_the_vectors_of_turns_read_one_by_one(tiny_encoder):
    reader = Reader(tiny_encoder)
    order = random.Random(0)
    words = ["the", "dog", "runs", "in", "a", "red", "house", "and", "sings", "slowly"]
    texts = [" ".join(order.choices(words, k=order.choice([1, 3, 8, 9, 40]))) for _ in range(40)]
    texts[5] = "\x01"  # no token at all
    apart = reader.new_conversation()
    vectors = np.stack([reader.add_turn(apart, text) for text in texts])
    together = reader.new_conversation()
    assert np.abs(reader.add_turns(together, texts) - vectors).max() <= 1e-6
    assert_same(together, apart)
    assert len(reader.add_turns(together, [])) == 0
    for last in (0, 1, 17, 39):
        spoken = "\n\n".join(texts[: last + 1])
        chunk = late_chunks(tiny_encoder, spoken, [(len(spoken) - len(texts[last]), len(spoken))])[0]
        assert np.abs(chunk.embedding - vectors[last]).max() <= 1e-5


def test_a_message_that_is_given_twice_is_read_once(place, tmp_path, tiny_encoder):
    with Memory(place, model=tiny_encoder) as memory:
        twice = [{"role": "user", "content": text, "id": str(i)} for i, text in enumerate(TURNS[:3]) for _ in range(2)]
        turns = memory.add(twice, user_id="ada", run_id="chat")
        assert [turn.id for turn in turns[::2]] == [turn.id for turn in turns[1::2]]
        memory.add(messages(["More."]), user_id="ada", run_id="chat")
        whole = replay(tmp_path, tiny_encoder, [*TURNS[:3], "More."])
        assert_same(state_of(memory), state_of(whole))
        assert np.abs(carried_of(memory) - carried_of(whole)).max() <= 1e-6


def test_a_turn_costs_its_own_tokens_after_a_restart_too(place, tiny_encoder, monkeypatch):
    monkeypatch.setattr(conversations, "STATE_EVERY", 16)
    with Memory(place, model=tiny_encoder) as memory:
        memory.add(messages(["the dog runs in the old house. " * 20] * 10), user_id="ada", run_id="chat")
    seen = []
    hook = tiny_encoder.model[0].model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        with Memory(place, model=tiny_encoder) as memory:
            memory.add(messages(["the cat sleeps"]), user_id="ada", run_id="chat")
    finally:
        hook.remove()
    assert sum(seen) < 64


def test_a_deleted_or_changed_turn_leaves_no_trace_in_state_or_vectors(memory, tmp_path, tiny_encoder):
    turns = memory.add(messages(TURNS), user_id="ada", run_id="chat")
    memory.add(messages(TURNS[:3]), user_id="ada", run_id="other")
    memory.delete(turns[1].id)
    left = [text for i, text in enumerate(TURNS) if i != 1]
    # Until the conversation is read again, its later turns have the vectors of their texts alone.
    assert np.allclose(
        carried_of(memory)[1], memory.partitions.get("ada").vectors[memory.partitions.get("ada").first[1]]
    )
    memory.add(messages(["More."]), user_id="ada", run_id="chat")
    whole = replay(tmp_path, tiny_encoder, [*left, "More."])
    assert_same(state_of(memory), state_of(whole))
    own = [r.id for r in memory.list(user_id="ada", run_id="chat")]
    partition = memory.partitions.get("ada")
    memory.search("dog", user_id="ada")
    got = partition.carried[[partition.ids.index(id) for id in own]]
    assert np.abs(got - carried_of(whole)).max() <= 1e-6
    memory.update(turns[0].id, "The cat runs in the house.")
    assert (
        np.abs(
            memory.gist(user_id="ada", run_id="chat")
            - tiny_encoder.encode("\n\n".join(["The cat runs in the house.", *left[1:], "More."]))
        ).max()
        <= 1e-6
    )
    assert memory.verify() == []


@pytest.mark.parametrize("again", [[], TURNS[::-1]])
def test_who_holds_a_state_sees_that_its_conversation_was_forgotten(place, tmp_path, tiny_encoder, again):
    with Memory(place, model=tiny_encoder) as first, Memory(place, model=tiny_encoder) as second:
        first.add(messages(TURNS), user_id="ada", run_id="chat")
        second.delete_all(user_id="ada", run_id="chat")
        for text in again:  # as many turns as the first one holds a state of
            second.add(messages([text]), user_id="ada", run_id="chat")
        with pytest.raises(UnknownMemory) if not again else contextlib.nullcontext():
            first.gist(user_id="ada", run_id="chat")
        first.add(messages(["More."]), user_id="ada", run_id="chat")
        whole = replay(tmp_path, tiny_encoder, [*again, "More."])
        assert_same(state_of(first), state_of(whole))
        assert np.abs(carried_of(first) - carried_of(whole)).max() <= 1e-6


def test_a_damaged_state_is_read_again(place, tiny_encoder, caplog):
    with Memory(place, model=tiny_encoder) as memory:
        memory.add(messages(TURNS), user_id="ada", run_id="chat")
        want = memory.gist(user_id="ada", run_id="chat")
        with memory.store.write() as transaction:
            transaction.run("UPDATE conversations SET state = ?", b"nonsense")
    with Memory(place, model=tiny_encoder) as memory:
        assert any("state of the conversation" in line for line in memory.verify())
        assert np.abs(memory.gist(user_id="ada", run_id="chat") - want).max() <= 1e-6
    assert "is damaged; it is read again" in caplog.text


def test_conversations_of_another_model_are_read_again(place, tiny_encoder, make_model, tokenizer, tmp_path):
    with Memory(place, model=tiny_encoder) as memory:
        memory.add(messages(TURNS), user_id="ada", run_id="chat")
    make_model(seed=9, two_way_chunk=8).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    other = LAMEncoder(tmp_path / "other")
    with Memory(place, model=other) as memory:
        memory.rebuild()
        assert memory.verify() == []
        assert np.abs(memory.gist(user_id="ada", run_id="chat") - other.encode("\n\n".join(TURNS))).max() <= 1e-6
        whole = replay(tmp_path, other, TURNS, "other.db")
        assert np.abs(carried_of(memory) - carried_of(whole)).max() <= 1e-6


def test_there_is_no_gist_of_what_was_never_said(memory):
    with pytest.raises(UnknownMemory):
        memory.gist(user_id="ada", run_id="never")
