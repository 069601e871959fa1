"""Runs in a process of its own that is killed: `python child.py PLACE OPERATION N` kills itself at its N-th statement.

With N = 0 it runs to its end and prints the number of statements.
"""

import os
import signal
import sqlite3
import sys

from lam_transformers.memories import Memory
from lam_transformers.memories.sqlite import SQLiteStore

statements = 0
DOCUMENT = "# Rivers\n\n" + "\n\n".join(f"Paragraph {i} about otters." for i in range(5))
TURNS = [{"role": "user", "content": f"Turn {i} about whales.", "id": str(i)} for i in range(3)]


def prepare(place: str) -> None:
    """What is there before the operation."""
    with Memory(place, model=None, now=lambda: 1_800_000_000.0) as memory:
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
    else:
        raise ValueError(operation)


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


if __name__ == "__main__":
    place, operation, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
    watch(limit)
    with Memory(place, model=None, now=lambda: 1_800_000_100.0) as memory:
        operate(memory, operation)
    print(statements)
