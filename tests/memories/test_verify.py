"""`Memory.verify` names each kind of damage, and what it says that `rebuild` mends is whole after it."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from lam_transformers.memories import Memory
from lam_transformers.memories.rows import digest_of

VECTORS = "SELECT alone, passages, spans, carried, words FROM vectors ORDER BY row_id LIMIT 1"
MENDED = "rebuild() "  # where a problem says this, rebuild mends it


@pytest.fixture
def filled(place, tiny_encoder, clock):
    """The place of a memory of a fact with two versions, a conversation and a document."""
    with Memory(place, model=tiny_encoder, now=clock) as memory:
        memory.add("The cat is called Tom.", user_id="ada", key="cat")
        memory.add("The cat is called Kit.", user_id="ada", key="cat")
        turns = [{"role": "user", "content": "My knee hurts."}, {"role": "assistant", "content": "Then rest it."}]
        memory.add(turns, user_id="ada", run_id="chat")
        memory.add_document("# Handbook\n\nThe office is upstairs.\n\nThe bikes are in the yard.", title="handbook")
        assert memory.verify() == []
    return place


@contextmanager
def database(place: str) -> Iterator[sqlite3.Connection]:
    """A connection whose changes are kept when the block ends, and which is closed then."""
    connection = sqlite3.connect(place)
    try:
        with connection:
            yield connection
    finally:
        connection.close()


def set_first_vectors(place: str, **changed: bytes) -> None:
    """Writes columns of the first row of vectors, and the digest that belongs to them."""
    with database(place) as connection:
        cursor = connection.execute(VECTORS)
        names = [column[0] for column in cursor.description]
        values = dict(zip(names, cursor.fetchone(), strict=True)) | changed
        columns = ", ".join(f"{name} = ?" for name in (*names, "digest"))
        connection.execute(
            f"UPDATE vectors SET {columns} WHERE row_id = (SELECT min(row_id) FROM vectors)",
            (*values.values(), digest_of(*values.values())),
        )


def first_vector(place: str) -> np.ndarray:
    with database(place) as connection:
        return np.frombuffer(connection.execute(VECTORS).fetchone()[0], "<f4").copy()


def damage_of_statement(sql: str):
    def damage(place: str) -> None:
        with database(place) as connection:
            assert connection.execute(sql).rowcount > 0

    return damage


def not_a_number(place: str) -> None:
    values = first_vector(place)
    values[3] = np.nan
    set_first_vectors(place, alone=values.tobytes())


DAMAGES = {
    "vectors gone": (
        damage_of_statement("DELETE FROM vectors WHERE row_id = (SELECT min(row_id) FROM vectors)"),
        "has no vectors",
    ),
    "other words": (
        lambda place: set_first_vectors(place, words=b""),
        "are not those of its text",
    ),
    "a vector of another size": (
        lambda place: set_first_vectors(place, alone=first_vector(place)[:5].tobytes()),
        "is another model's",
    ),
    "NaN": (not_a_number, "holds NaN or infinity"),
    "a flipped vector": (
        damage_of_statement("UPDATE vectors SET alone = zeroblob(length(alone))"),
        "are not what was written",
    ),
    "two versions at once": (
        damage_of_statement("UPDATE memories SET superseded = NULL, key = NULL WHERE key = 'cat'"),
        "has 2 versions that hold at once",
    ),
    "vectors of nobody": (
        damage_of_statement(
            "UPDATE vectors SET row_id = row_id + 1000 WHERE row_id = (SELECT max(row_id) FROM vectors)"
        ),
        "rows of vectors belong to no memory",
    ),
    "turns at one place": (
        damage_of_statement("UPDATE memories SET position = 0 WHERE kind = 'turn'"),
        "has turns that are doubled or beyond its 2",
    ),
    "another text of a document": (
        damage_of_statement("UPDATE documents SET text = text || '!'"),
        "the text of the document 'handbook'",
    ),
    "paragraphs at one place": (
        damage_of_statement("UPDATE memories SET position = 0 WHERE kind = 'paragraph'"),
        "has paragraphs that are doubled or missing",
    ),
    "paragraphs elsewhere": (
        damage_of_statement("UPDATE memories SET start_at = start_at + 1 WHERE kind = 'paragraph'"),
        "has paragraphs that are not in its text",
    ),
    "no paragraphs": (
        damage_of_statement("DELETE FROM memories WHERE document_id IS NOT NULL"),
        "has no paragraphs",
    ),
    "a rebuild that was interrupted": (
        damage_of_statement(
            """INSERT INTO settings VALUES ('rebuilding', '{"model": "", "row": 0, "document": ["", 0]}')"""
        ),
        "rebuild() was interrupted",
    ),
    "a dimension that is no number": (
        damage_of_statement("UPDATE settings SET value = 'many' WHERE name = 'dimension'"),
        "the check could not go on",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(filled, tiny_encoder, clock, name):
    damage, said = DAMAGES[name]
    damage(filled)
    with Memory(filled, model=tiny_encoder, now=clock) as memory:
        problems = memory.verify()
        assert any(said in problem for problem in problems), problems
        if not all(MENDED in problem for problem in problems):
            return
        memory.rebuild()
        assert memory.verify() == []
        assert (
            memory.search("what is the cat called?", user_id="ada", kinds=["memory"])[0].text
            == "The cat is called Kit."
        )
