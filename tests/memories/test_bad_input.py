"""What cannot be stored or asked is refused by name; odd names stay what they are; damage is found."""

import datetime
import os
import random
import shutil
from pathlib import Path

import pytest

from lam_transformers.memories import (
    Memory,
    MemoryFileDamaged,
    MemoryFileRefused,
    MemoryUnavailable,
    Ranking,
    UnknownMemory,
)

GOOD = {"role": "user", "content": "hello"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "text is empty"), (" \n", "text is empty"), (7, "messages must be"), ([], "messages must be"),
        ("x" * 10_000_000, "10,000,000 characters, more than 1,000,000; use add_document"), ("a\0b", "NUL character"),
        ("lone \ud800", "lone surrogate"), ([GOOD, "x"], r"messages\[1\] must be a dictionary"),
        ([{"content": "x"}], r"messages\[0\] has no 'role'"), ([GOOD, {"role": "user"}], r"\[1\] has no 'content'"),
        ([{"role": "", "content": "x"}], "'role'. is empty"), ([{"role": "user", "content": None}], "must be a string"),
        ([{**GOOD, "timestamp": "2026-01-01T00:00:00"}], "no zone"), ([{**GOOD, "timestamp": "soon"}], "ISO 8601"),
        ([{**GOOD, "timestamp": datetime.datetime(2026, 1, 1)}], "no zone"),
        ([{**GOOD, "timestamp": 1_767_225_600_000}], "milliseconds"),
        ([{**GOOD, "timestamp": 9.0}, {**GOOD, "timestamp": 8.0}], r"messages\[1\].* put them in order"),
        ([{**GOOD, "metadata": [1]}], "metadata.* dictionary"), ([{**GOOD, "metadata": {"x": {1}}}], "JSON"),
    ],
)  # fmt: skip
def test_content(words_only, content, message):
    with pytest.raises(ValueError, match=message):
        words_only.add(content, user_id="ada")
    assert words_only.stats()["versions"] == 0


def test_turns_before_the_last_one_are_refused(words_only):
    words_only.add([{**GOOD, "timestamp": "2026-05-01T00:00:00Z"}], user_id="ada", run_id="c")
    with pytest.raises(ValueError, match="earlier than the last turn"):
        words_only.add([{**GOOD, "timestamp": "2026-04-01T00:00:00Z"}], user_id="ada", run_id="c")
    with pytest.raises(ValueError, match="belong to a text"):
        words_only.add([GOOD], user_id="ada", key="x")


@pytest.mark.parametrize(
    "name",
    ["o'brien", '"; DROP TABLE memories; --', "../../etc/passwd", "%", "_", "*", "a\nb", "\u202eada", "ADA", "ada ",
     "\u00e4"],
)  # fmt: skip
def test_odd_names_are_only_names(words_only, name):
    words_only.add("The dog of ada.", user_id="ada")
    own = words_only.add("The dog.", user_id=name, agent_id=name, run_id=name, key=name)[0]
    words_only.add([GOOD], user_id=name, run_id=name)
    assert [r.text for r in words_only.search("dog", user_id=name)] == ["The dog."]
    assert [r.text for r in words_only.search("dog", user_id="ada")] == ["The dog of ada."]
    assert words_only.get(own.id, user_id=name) == own
    with pytest.raises(UnknownMemory):
        words_only.get(own.id, user_id="ada")
    assert words_only.delete_all(user_id=name) == 2
    assert len(words_only.list(user_id="ada")) == 1


@pytest.mark.parametrize("name", ["", "  ", "x" * 10_000, 7, "a\0b", "\ud800"])
def test_names_that_cannot_be_stored(words_only, name):
    for call in (
        lambda: words_only.add("x", user_id=name), lambda: words_only.search("x", user_id=name),
        lambda: words_only.list(run_id=name), lambda: words_only.delete_all(agent_id=name),
        lambda: words_only.add("x", user_id="a", key=name),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"user_id|agent_id|run_id|key"):
            call()


@pytest.mark.parametrize("id", ["", "nope", "' OR 1=1 --", None, 7, "a\0", "x" * 100_000])
def test_unknown_ids(words_only, id):
    words_only.add("The dog.", user_id="ada")
    for call in (words_only.get, words_only.history, words_only.delete, lambda i: words_only.update(i, "x")):
        with pytest.raises(UnknownMemory):
            call(id)
    assert len(words_only.list(user_id="ada")) == 1


@pytest.mark.parametrize(
    "query",
    ['"dog', "dog AND (", "dog*", "NEAR(dog, 3)", "text:dog", "-dog", "dog; --", "^dog", "\u202edog", "dog " * 5000],
)  # fmt: skip
def test_queries_have_no_syntax(words_only, query):
    words_only.add("The dog.", user_id="ada")
    assert [r.text for r in words_only.search(query, user_id="ada")] == ["The dog."]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k"), ({"top_k": True}, "top_k"), ({"top_k": 10**6}, "top_k"),
        ({"kinds": ["dream"]}, "kinds"), ({"kinds": []}, "kinds"),
        ({"after": "yesterday"}, "after"), ({"as_of": "2026-01-01"}, "as_of .* no zone"),
    ],
)  # fmt: skip
def test_options_of_a_search(words_only, options, message):
    with pytest.raises(ValueError, match=message):
        words_only.search("dog", user_id="ada", **options)
    for query in ("", "  ", None, "x" * 200_000):
        with pytest.raises(ValueError, match="query"):
            words_only.search(query)
    with pytest.raises(ValueError, match="words must be from 0 to 1"):
        Ranking(words=2.0)


def test_delete_all_needs_to_know_what(words_only):
    words_only.add("The dog.")
    with pytest.raises(ValueError, match="everything=True"):
        words_only.delete_all()
    with pytest.raises(ValueError, match="leave the scope out"):
        words_only.delete_all(user_id="ada", everything=True)
    assert words_only.delete_all(everything=True) == 1


def test_a_closed_memory_says_so(words_only):
    words_only.close()
    with pytest.raises(MemoryUnavailable, match="was closed"):
        words_only.search("dog")


def filled(place):
    with Memory(place, model=None) as memory:
        for i in range(200):
            memory.add(f"Memory number {i}: {'lorem ipsum dolor ' * 20}", user_id="ada")
        memory.store.forget()


def test_a_read_only_file_is_searched_and_not_written(place):
    filled(place)
    os.chmod(place, 0o444)
    if os.access(place, os.W_OK):
        pytest.skip("root can write everything")
    with Memory(place, model=None) as memory:
        assert memory.search("number", user_id="ada")
        with pytest.raises(MemoryUnavailable):
            memory.add("x", user_id="ada")


def test_a_full_disk_changes_nothing(place):
    filled(place)
    with Memory(place, model=None) as memory:
        with memory.store._connection() as connection:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages + 1}")
        with pytest.raises(MemoryUnavailable, match="make room"):
            memory.add("full " * 100_000, user_id="ada")
        assert len(memory.list(user_id="ada", limit=1000)) == 200
        assert memory.verify() == []


def test_damage_is_named_and_the_rest_is_exported(place, tmp_path):
    filled(place)
    whole = Path(place).read_bytes()
    order = random.Random(1)
    named = 0
    for number in range(12):
        damaged = bytearray(whole)
        if number < 3:
            damaged = damaged[: order.randrange(5_000, len(whole) - 5_000)]
        else:
            for _ in range(20):
                damaged[order.randrange(4096, len(whole))] ^= 1 << order.randrange(8)
        here = tmp_path / f"damaged{number}.db"
        here.write_bytes(damaged)
        try:
            memory = Memory(here, model=None)
        except (MemoryFileDamaged, MemoryFileRefused):
            named += 1
            continue
        with memory:
            problems = memory.verify()
            named += bool(problems)
            try:
                count = memory.export(tmp_path / f"rest{number}.jsonl")
            except MemoryFileDamaged:
                continue
        assert problems or count == 200
        with Memory(tmp_path / f"rest{number}.db", model=None) as rest:
            assert rest.import_(tmp_path / f"rest{number}.jsonl") == count
    assert named >= 10


def test_a_flipped_letter_is_found_by_verify(place, tmp_path):
    filled(place)
    shutil.copyfile(place, tmp_path / "flipped.db")
    data = bytearray((tmp_path / "flipped.db").read_bytes())
    data[data.index(b"number 77: lorem") + 12] ^= 1
    (tmp_path / "flipped.db").write_bytes(data)
    with Memory(tmp_path / "flipped.db", model=None) as memory:
        assert any("text or metadata of memory" in problem for problem in memory.verify())
        assert memory.export(tmp_path / "rest.jsonl") == 199
