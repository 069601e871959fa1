"""What is remembered is found again, by those who may see it, in the version that held."""

import datetime
import itertools
import json
import sqlite3

import numpy as np
import pytest

from lam_transformers.memories import Memory, MemoryFileRefused, MemoryUnavailable, Ranking, Scope, UnknownMemory

TALK = [
    {"role": "user", "content": "The dog sleeps in the house.", "timestamp": "2026-03-01T10:00:00Z", "id": "a"},
    {"role": "assistant", "content": "A woman reads a book.", "timestamp": "2026-03-01T10:00:05+00:00"},
    {"role": "user", "content": "The cat eats in the street.", "metadata": {"mood": "calm"}},
]


def texts(results):
    return [result.text for result in results]


def test_what_is_added_is_found(memory):
    memory.add("A man plays the guitar.", user_id="ada")
    memory.add("The river is green and old.", user_id="ada")
    results = memory.search("guitar music", user_id="ada", explain=True)
    assert results[0].text == "A man plays the guitar."
    assert len(results) == 2
    for result in results:
        parts = result.parts
        assert result.score == pytest.approx(sum(parts[n] for n in ("vectors", "words", "personal", "said")), abs=1e-6)
        assert -1.001 <= parts["cosine alone"] <= 1.001
        json.dumps(result.as_dict())


def test_vectors_are_those_of_encode(memory, tiny_encoder):
    written = ["the dog", "the old man sings in the house. " * 40, "red water " * 60]
    for text in written:
        memory.add(text, user_id="ada")
    partition = memory.partitions.get("ada")
    memory.search("dog", user_id="ada")
    for place, text in enumerate(written):
        assert np.abs(partition.vectors[partition.first[place]] - tiny_encoder.encode(text)).max() <= 1e-6
    # The long ones have passages, which tell where in the text the answer is.
    assert len(partition.vectors) > len(written)
    start, end = memory.search("red water", user_id="ada")[0].passage
    assert 0 <= start < end


def test_messages_keep_order_role_time_and_metadata(memory):
    turns = memory.add(TALK, user_id="ada", run_id="chat")
    assert [turn.position for turn in turns] == [0, 1, 2]
    assert [turn.role for turn in turns] == ["user", "assistant", "user"]
    assert turns[0].time == datetime.datetime(2026, 3, 1, 10, tzinfo=datetime.UTC)
    assert turns[2].metadata == {"mood": "calm"}
    assert memory.list(user_id="ada", run_id="chat") == turns
    # A message whose id is known is not doubled; another text under the same id is an error, and adds nothing.
    assert memory.add(TALK[:1], user_id="ada", run_id="chat") == turns[:1]
    with pytest.raises(ValueError, match="another message"):
        memory.add([{"role": "user", "content": "new"}, {**TALK[0], "content": "x"}], user_id="ada", run_id="chat")
    assert len(memory.list(user_id="ada")) == 3


def test_a_fact_is_superseded_by_update_and_by_key(memory, clock):
    first = memory.add("I live in the red house.", user_id="ada", key="home")[0]
    then = clock()
    clock.seconds += 100
    second = memory.add("I live in the green house.", user_id="ada", key="home")[0]
    assert (second.id, second.version) == (first.id, 2)
    third = memory.update(first.id, "I live in the old house.")
    assert [version.text for version in memory.history(first.id)] == [first.text, second.text, third.text]
    assert memory.history(first.id)[0].superseded == second.time
    assert memory.get(first.id) == third
    assert texts(memory.search("house", user_id="ada")) == [third.text]
    assert texts(memory.search("house", user_id="ada", as_of=then)) == [first.text]
    assert memory.search("house", user_id="ada", as_of=then - 1000) == []
    assert [event["kind"] for event in memory.events(first.id)] == ["added", "updated", "updated"]
    # The same again changes nothing, an earlier time is refused, another user's key is another fact.
    assert memory.add(third.text, user_id="ada", key="home") == [third]
    with pytest.raises(ValueError, match="earlier"):
        memory.update(first.id, "I live nowhere.", timestamp=then)
    assert memory.add("I live here.", user_id="bob", key="home")[0].id != first.id


def test_filters(memory):
    memory.add(TALK, user_id="ada", run_id="chat")
    memory.add("The dog is old.", user_id="ada", timestamp="2026-01-01T00:00:00Z")
    memory.add("The dog is young.", user_id="ada", run_id="other", timestamp="2026-05-01T00:00:00Z")
    assert set(texts(memory.search("dog", user_id="ada", before="2026-02-01T00:00:00Z"))) == {"The dog is old."}
    assert "The dog is old." not in texts(memory.search("dog", user_id="ada", after="2026-02-01T00:00:00Z"))
    assert "The dog is young." not in texts(memory.search("dog", user_id="ada", run_id="chat"))
    assert {r.memory.kind for r in memory.search("dog", user_id="ada", kinds=["turn"])} == {"turn"}
    assert len(memory.search("dog", user_id="ada", top_k=2)) == 2


def test_scopes(memory):
    own = memory.add("The dog of ada.", user_id="ada")[0]
    shared = memory.add("The dog of the house.")[0]
    agents = memory.add("The dog of the agent.", agent_id="helper")[0]
    other = memory.add("The dog of bob.", user_id="bob")[0]
    for_one_agent = memory.add("The dog of ada and the agent.", user_id="ada", agent_id="helper")[0]
    seen = {result.id for result in memory.search("dog", user_id="ada")}
    assert seen == {own.id, shared.id, for_one_agent.id}
    assert {r.id for r in memory.search("dog")} == {shared.id}
    assert {r.id for r in memory.search("dog", agent_id="helper")} == {shared.id, agents.id}
    assert for_one_agent.id not in {r.id for r in memory.search("dog", user_id="ada", agent_id="another")}
    for call in (
        memory.get,
        memory.delete,
        memory.history,
        lambda id, user_id: memory.update(id, "x", user_id=user_id),
    ):
        with pytest.raises(UnknownMemory):
            call(other.id, user_id="ada")
    assert memory.get(shared.id, user_id="ada") == shared
    with pytest.raises(UnknownMemory):  # what is shared is not for one user to delete
        memory.delete(shared.id, user_id="ada")
    assert [m.id for m in memory.list(user_id="bob")] == [other.id]
    assert [m.id for m in memory.list()] == [shared.id, agents.id]


def test_personal_memories_come_first(memory):
    memory.add("The cat sleeps.")
    memory.add("The cat sleeps.", user_id="ada")
    results = memory.search("cat", user_id="ada", explain=True)
    assert [result.memory.user_id for result in results] == ["ada", None]
    assert results[0].parts["personal"] == pytest.approx(0.05)
    plain = memory.search("cat", user_id="ada", ranking=Ranking(personal=0.0), explain=True)
    assert plain[0].score == pytest.approx(plain[1].score, abs=1e-6)


def test_near_duplicates_are_one_result_with_variants(memory):
    for _ in range(3):
        memory.add("The child plays in the street.", user_id="ada")
    memory.add("Music.", user_id="ada")
    results = memory.search("child street", user_id="ada")
    assert texts(results) == ["The child plays in the street.", "Music."]
    assert len(results[0].variants) == 2
    assert len(memory.search("child street", user_id="ada", ranking=Ranking(duplicates=None))) == 4


def test_strengths_grow_with_recall_and_fade_with_sessions(place, tiny_encoder, clock):
    memory = Memory(place, model=tiny_encoder, now=clock, strengths=True, ranking=Ranking(strengths=0.1))
    first = memory.add("The dog runs.", user_id="ada")[0]
    memory.add("The dog runs quickly.", user_id="ada")
    from lam_transformers.memories.strengths import current

    def strength():
        with memory.store.read() as transaction:
            return current(memory.engine, transaction, first.id)

    assert strength() == {"fast": 1.0, "slow": 1.0, "recalls": 0}
    clock.seconds += 3600
    assert strength()["fast"] == pytest.approx(0.3)
    assert strength()["slow"] == pytest.approx(0.999)
    result = memory.search("dog", user_id="ada", explain=True, top_k=1)[0]
    assert 0 < result.parts["strength"] <= 0.1
    kinds = [event["kind"] for event in memory.events(result.id)]
    assert kinds == ["added", "strength", "recalled"]
    assert memory.events(result.id)[-1]["recalls"] == 1


def test_a_memory_without_a_model_finds_by_words(words_only):
    words_only.add("A man plays the guitar.", user_id="ada")
    assert texts(words_only.search("guitars", user_id="ada")) == ["A man plays the guitar."]
    assert words_only.search("river", user_id="ada") == []
    with pytest.raises(ValueError, match="without a model"):
        words_only.gist(user_id="ada")


def test_another_model_searches_by_words_until_it_is_rebuilt(place, memory, make_model, tokenizer, tmp_path):
    memory.add("A man plays the guitar.", user_id="ada")
    memory.add_document("The river.\n\nThe street is old.", user_id="ada")
    make_model(seed=7, hidden_size=32, num_attention_heads=1).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with Memory(place, model=str(tmp_path / "other")) as other:
        result = other.search("guitar", user_id="ada", explain=True)[0]
        assert result.text == "A man plays the guitar."
        assert result.parts["vectors"] == 0
        with pytest.raises(MemoryFileRefused, match="rebuild"):
            other.add("More.", user_id="ada")
        assert other.rebuild() == 4
        assert other.search("guitar", user_id="ada", explain=True)[0].parts["vectors"] > 0
        assert other.verify() == []
    # Whoever still has the old model sees that at once.
    assert memory.search("guitar", user_id="ada", explain=True)[0].parts["vectors"] == 0


def test_export_and_import(memory, tmp_path, tiny_encoder):
    memory.add(TALK, user_id="ada", run_id="chat")
    fact = memory.add("I live in the red house.", user_id="ada", key="home")[0]
    memory.update(fact.id, "I live in the green house.")
    memory.add_document("# The river\n\nThe water is green.\n\nThe street is red.", title="river")
    assert memory.export(tmp_path / "all.jsonl") == 6
    with Memory(tmp_path / "copy.db", model=tiny_encoder) as copy:
        assert copy.import_(tmp_path / "all.jsonl") == 6
        assert copy.import_(tmp_path / "all.jsonl") == 0
        assert copy.verify() == []
        assert copy.list(user_id="ada") == memory.list(user_id="ada")
        assert copy.history(fact.id) == memory.history(fact.id)
        for question in ("green water", "where does she live", "dog"):
            a, b = (m.search(question, user_id="ada") for m in (memory, copy))
            assert texts(a) == texts(b)
            assert [r.score for r in a] == pytest.approx([r.score for r in b], abs=1e-5)
        copy.add([{"role": "user", "content": "And then?"}], user_id="ada", run_id="chat")
        assert copy.list(user_id="ada", run_id="chat")[-1].position == 3
    assert sorted(p.name for p in tmp_path.iterdir() if "all" in p.name) == ["all.jsonl"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "no export"), ('{"a": 1}\n', "no export"), ('{"lam_memory": 99}\n', "format 99"),
        ('{"lam_memory": 1}\nnonsense\n', "Line 2 .* no JSON"), ('{"lam_memory": 1}\n{"id": "x"}\n', "Line 2 .*'text'"),
        ('{"lam_memory": 1}\n{"id": "x", "text": "t", "kind": "dream", "version": 1, "time": 0}\n', "dream"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_export_is_refused(words_only, tmp_path, lines, message):
    (tmp_path / "bad.jsonl").write_text(lines, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        words_only.import_(tmp_path / "bad.jsonl")
    assert words_only.list() == []


def test_files_of_others_are_refused_and_left_alone(tmp_path):
    other = tmp_path / "other.db"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE t (x)")
    connection.commit()
    connection.close()
    (tmp_path / "text.db").write_text("no database at all", encoding="utf-8")
    (tmp_path / "folder.db").mkdir()
    for path in (other, tmp_path / "text.db", tmp_path / "folder.db"):
        before = path.read_bytes() if path.is_file() else None
        with pytest.raises(MemoryFileRefused):
            Memory(path, model=None)
        assert before is None or path.read_bytes() == before
    with pytest.raises(MemoryUnavailable, match="does not exist"):
        Memory(tmp_path / "nowhere" / "memory.db", model=None)


def test_a_newer_schema_is_refused_and_an_older_one_migrated_after_a_copy(words_only, place, monkeypatch):
    from lam_transformers.memories import store

    words_only.add("The dog.", user_id="ada")
    words_only.close()
    monkeypatch.setattr(store, "SCHEMA_VERSION", 2)
    monkeypatch.setattr(store, "MIGRATIONS", {1: ["ALTER TABLE sessions ADD COLUMN place TEXT"]})
    with Memory(place, model=None) as migrated:
        assert texts(migrated.search("dog", user_id="ada")) == ["The dog."]
        assert migrated.settings()["schema"] == "2"
    monkeypatch.undo()
    with pytest.raises(MemoryFileRefused, match="newer version"):
        Memory(place, model=None)
    with Memory(place + ".schema-1", model=None) as copy:
        assert texts(copy.search("dog", user_id="ada")) == ["The dog."]


def test_results_are_the_same_with_and_without_their_parts(memory):
    memory.add(TALK, user_id="ada", run_id="chat")
    memory.add("The old man sings in the house. " * 40, user_id="ada")
    memory.add_document("# River\n\nThe dog runs.\n\nThe cat sings in the red street.")
    for query in ("the dog", "who sings in the house?", "red"):
        plain = memory.search(query, user_id="ada")
        explained = memory.search(query, user_id="ada", explain=True)
        assert [r.id for r in plain] == [r.id for r in explained]
        assert [r.score for r in plain] == pytest.approx([r.score for r in explained], abs=1e-5)
        assert [sum(r.parts[name] for name in ("vectors", "words", "personal", "said")) for r in explained] == (
            pytest.approx([r.score for r in explained], abs=1e-5)
        )


def test_stats(memory):
    memory.add(TALK, user_id="ada", run_id="chat")
    memory.add_document("One.\n\nTwo.")
    stats = memory.stats()
    assert (stats["memories"], stats["paragraphs"], stats["documents"], stats["users"]) == (3, 2, 1, 1)
    assert stats["bytes"] > 0


def test_the_example_assistant(memory):
    from memory_assistant import answer

    assert "nothing yet" in answer(memory, "ada", "Where do I live?")
    assert "remember" in answer(memory, "ada", "I live in the red house.")
    said = answer(memory, "ada", "Where do I live?")
    assert "I live in the red house." in said
    assert answer(memory, "ada", "forget " + said.rsplit("[", 1)[1].rstrip("]")) == "Forgotten."
    assert memory.list(user_id="ada") == []


def test_nothing_leads_out_of_a_scope(words_only):
    """By no method and no id: another user's data is as unknown as what does not exist."""
    memory = words_only
    said = {}
    for user, agent, run in itertools.product((None, "ada", "bob"), (None, "helper", "coach"), (None, "chat", "walk")):
        names = {"user_id": user, "agent_id": agent, "run_id": run}
        said[user, agent, run] = memory.add(f"The dog of {user}, {agent}, {run}.", **names)[0]
    papers = {
        user: memory.add_document(f"# The dog in the papers of {user}\n\nThe cat.", user_id=user)
        for user in (None, "ada", "bob")
    }
    for user, agent, run in itertools.product((None, "ada"), (None, "helper"), (None, "chat")):
        own = memory.within(user_id=user, agent_id=agent, run_id=run)
        seen = {record.id for record in said.values() if own.scope.sees(scope_of(record))}
        papers_seen = {papers[None].id, papers[user].id}
        results = own.search("dog", top_k=100, ranking=Ranking(duplicates=None), kinds=["memory", "document"])
        assert {result.id for result in results} == seen | papers_seen
        for record in [*said.values(), *papers.values()]:
            for call in (own.get, own.history, own.events):
                if record.id in seen | papers_seen:
                    call(record.id)
                else:
                    with pytest.raises(UnknownMemory, match="There is no memory"):
                        call(record.id)
            if not own.scope.owns(scope_of(record)):
                for change in (own.delete, lambda id, own=own: own.update(id, "Mine.")):
                    with pytest.raises(UnknownMemory, match="There is no memory"):
                        change(record.id)
        for paper_of, paper in papers.items():
            if paper_of == "bob":
                with pytest.raises(UnknownMemory):
                    own.document(paper.id)
                with pytest.raises(UnknownMemory):
                    own.get(f"{paper.id}-0")
            elif paper_of is None:
                assert own.document(paper.id).endswith("The cat.")
        assert all(own.scope.owns(scope_of(record)) for record in own.list(limit=1000))
    own = memory.within(user_id="ada", agent_id="helper")
    assert own.delete_all() == 3
    assert own.list() == []
    assert {r.text for r in memory.list(user_id="bob", kinds=["memory"])} == {
        record.text for (user, _, _), record in said.items() if user == "bob"
    }
    assert memory.within(run_id="chat").delete_all() == 1  # what is shared, and nothing of an agent or a user
    with pytest.raises(ValueError, match="delete_all needs"):
        memory.within().delete_all()


def scope_of(record):
    return Scope(record.user_id or "", record.agent_id or "", record.run_id or "")


def test_what_is_written_in_a_scope_belongs_to_it(memory):
    own = memory.within(user_id="ada", agent_id="helper", run_id="chat")
    text = own.add("The dog.", key="dog")[0]
    turn = own.add(TALK)[0]
    assert scope_of(text) == scope_of(turn) == own.scope
    assert own.update(text.id, "The cat.").text == "The cat."
    assert np.isfinite(own.gist()).all()
    own.delete(turn.id)
    assert own.list()[-1].text == "The cat."  # it was written last
    assert turn.id not in {record.id for record in own.list()}
    assert scope_of(own.add_document("The river.")) == Scope("ada", "helper")
