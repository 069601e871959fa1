"""What was deleted is in no file any more: the raw bytes are searched."""

import random
import sqlite3
from pathlib import Path

import numpy as np

from lam_transformers.memories import Memory

from .test_conversations import TURNS, messages


def raw(place):
    return b"".join(path.read_bytes() for path in Path(place).parent.glob(Path(place).name + "*"))


def secret(number):
    return f"zebra{number:04d}quux"


def test_no_byte_of_a_deleted_memory_is_left(words_only, place, tmp_path):
    order = random.Random(0)
    kept = {}
    for number in range(300):
        text = f"{secret(number)} {'lorem ipsum ' * order.randrange(40)}"
        kept[number] = words_only.add(text, user_id="ada", metadata={"m": f"meta{secret(number)}"})[0].id
        if order.random() < 0.1:
            words_only.update(kept[number], f"{secret(number)} again")
    gone = order.sample(sorted(kept), 20)
    for number in gone:
        words_only.delete(kept.pop(number))
        assert secret(number).encode() not in raw(place)
    data = raw(place)
    assert not [number for number in gone if secret(number).encode() in data]
    assert all(secret(number).encode() in data for number in kept)
    words_only.export(tmp_path / "export.jsonl")
    assert not [number for number in gone if secret(number) in (tmp_path / "export.jsonl").read_text()]
    assert words_only.delete_all(user_id="ada") == 280
    assert b"zebra" not in raw(place)
    assert words_only.verify() == []


def test_nor_of_a_document_or_a_conversation_nor_in_a_state(memory, place):
    memory.add(messages(TURNS), user_id="ada", run_id="chat")
    memory.add("The zebra.", user_id="ada", key="animal")
    record = memory.add_document("# Zebra\n\nA zebra runs.\n\nA zebra eats.", user_id="ada")
    turn = memory.add(messages(["A zebra sings."]), user_id="ada", run_id="chat")[0]
    other = memory.add("The cat of bob.", user_id="bob")[0]
    with memory.store.read() as transaction:
        vectors = [bytes(row[0]) for row in transaction.rows("SELECT alone FROM vectors") if row[0] is not None]
    assert all(vector in raw(place) for vector in vectors)
    memory.delete(turn.id)
    memory.delete(record.id)
    memory.delete_all(user_id="ada")
    data = raw(place)
    assert b"ebra" not in data
    kept = memory.store
    with kept.read() as transaction:
        assert transaction.rows("SELECT count(*) FROM conversations") == [(0,)]
        left = [bytes(row[0]) for row in transaction.rows("SELECT alone FROM vectors")]
    assert len(left) == 1
    assert sum(vector in data for vector in vectors) == 1
    assert memory.get(other.id).text == "The cat of bob."


def test_events_hold_no_text(memory):
    id = memory.add("The zebra.", user_id="ada", key="animal")[0].id
    memory.update(id, "The zebra sings.")
    assert "zebra" not in str(memory.events())
    memory.delete(id)
    assert [event["kind"] for event in memory.events(id)] == ["deleted"]


def test_other_processes_stop_finding_it(memory, place, tiny_encoder):
    id = memory.add("The zebra.", user_id="ada")[0].id
    memory.add("The dog.", user_id="ada")
    with Memory(place, model=tiny_encoder) as other:
        assert len(other.search("zebra", user_id="ada")) == 2
        memory.delete(id)
        assert [r.text for r in other.search("zebra", user_id="ada")] == ["The dog."]
        assert np.isfinite(other.partitions.get("ada").vectors).all()


def test_secure_delete_is_on(words_only, place):
    with words_only.store._connection() as connection:
        assert connection.execute("PRAGMA secure_delete").fetchone() == (1,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert sqlite3.threadsafety == 3
