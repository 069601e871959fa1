"""A process whose children are killed: `python -m tests.memories.child [MODEL]`.

It reads a line of JSON for each child, forks one that does the operation on the memory at `place`, and writes how it
ended. The child kills itself at its `statement`-th statement, or is killed after `seconds`. Python and its packages are
loaded once for all of them.
"""

import contextlib
import json
import os
import signal
import sqlite3
import sys
import time
import traceback

from lam_transformers.memories import Memory, store
from lam_transformers.memories.sqlite import SQLiteStore

statements = 0
DOCUMENT = "# Rivers\n\n" + "\n\n".join(f"Paragraph {i} about otters." for i in range(5))
TURNS = [{"role": "user", "content": f"Turn {i} about whales.", "id": str(i)} for i in range(3)]
# The next schema, for "migrate": what there is stays as it is.
LATER = [
    "ALTER TABLE sessions ADD COLUMN place TEXT",
    "CREATE TABLE places (name TEXT PRIMARY KEY)",
    "INSERT INTO places (name) SELECT DISTINCT user_id FROM memories",
]


def prepare(place: str, model=None) -> None:
    """What is there before the operation."""
    with Memory(place, model=model, now=lambda: 1_800_000_000.0) as memory:
        memory.add("I live in Oslo.", user_id="ada", key="home")
        memory.add("The dog is called Rex.", user_id="ada", key="dog")
        memory.add([{"role": "user", "content": "Hello seals.", "id": "hello"}], user_id="ada", run_id="chat")


def operate(memory: Memory, operation: str) -> None:
    """May be done again after a kill, with the same result."""
    by_key = {record.key: record for record in memory.list(user_id="ada")}
    if operation == "add":
        memory.add("I like tea.", user_id="ada", key="drink")
    elif operation == "messages":
        memory.add(TURNS, user_id="ada", run_id="chat")
    elif operation == "supersede":
        memory.add("I live in Rome.", user_id="ada", key="home")
    elif operation == "update":
        memory.update(by_key["home"].id, "I live in Rome.")
    elif operation == "delete":
        if "dog" in by_key:
            memory.delete(by_key["dog"].id)
    elif operation == "document":
        memory.add_document(DOCUMENT, user_id="ada")
    elif operation == "rebuild":
        memory.rebuild()
    elif operation != "migrate":  # which is done when the memory is opened
        raise ValueError(operation)


def use_later_schema() -> None:
    """From now on this process writes the schema of LATER."""
    store.MIGRATIONS = {store.SCHEMA_VERSION: LATER}
    store.SCHEMA_VERSION += 1


def watch(limit: int) -> None:
    """Kills the process at its `limit`-th statement."""
    connect = SQLiteStore._connect

    def counted(sql: str) -> None:
        global statements
        statements += 1
        if statements == limit:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(self) -> sqlite3.Connection:
        connection = connect(self)
        connection.set_trace_callback(counted)
        return connection

    SQLiteStore._connect = watched
    with contextlib.suppress(ImportError):
        import psycopg

        execute = psycopg.Connection.execute

        def counted_first(self, query, *arguments, **options):
            counted(query)
            return execute(self, query, *arguments, **options)

        psycopg.Connection.execute = counted_first


def work(order: dict, model) -> None:
    """What a child does."""
    watch(order["statement"])
    if order["operation"] == "migrate":
        use_later_schema()
    with Memory(order["place"], model=model, now=lambda: 1_800_000_100.0) as memory:
        operate(memory, order["operation"])


def child(order: dict, model) -> dict:
    """Forks a child; its exit code (negative: the signal) and the number of statements, 0 if it was killed."""
    read, write = os.pipe()
    process = os.fork()
    if not process:
        code = 1
        try:
            work(order, model)
            os.write(write, str(statements).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write)
    if order["seconds"] is not None:
        time.sleep(order["seconds"])
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    with os.fdopen(read) as pipe:
        return {"code": os.waitstatus_to_exitcode(status), "statements": int(pipe.read() or 0)}


def main() -> None:
    model = None
    if len(sys.argv) > 1:
        from lam_transformers.memories.reading import Reader

        model = Reader(sys.argv[1])
        model.parts  # noqa: B018
    for line in sys.stdin:
        print(json.dumps(child(json.loads(line), model)), flush=True)


if __name__ == "__main__":
    main()
