"""`Memory`: what a user of the service holds in the hand."""

import contextlib
import datetime
import hashlib
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import documents, transfer, upkeep
from .errors import MemoryFileRefused, MemoryUnavailable, UnknownMemory
from .index import Partitions, as_json
from .ranking import Ranking
from .records import (
    KINDS,
    MemoryRecord,
    Message,
    Scope,
    SearchResult,
    as_datetime,
    check_messages,
    check_metadata,
    check_name,
    check_text,
    check_time,
)
from .searching import search
from .store import Store, Transaction
from .words import count_words

if TYPE_CHECKING:
    from .reading import ConversationState, Reader

logger = logging.getLogger(__name__)

RECORD = (
    "id, text, kind, version, user_id, agent_id, run_id, role, time, superseded, key, position, document_id, "
    "start_at, end_at, metadata"
)
_List = list  # `list` is a method of Memory
SESSION_GAP = 1800.0  # seconds without a word after which a new session begins
_STATE_EVERY = 512  # tokens of a conversation after which its state is stored again
_TRIES = 100  # times that a conversation is read on before giving up, because others wrote to it meanwhile


class Memory:
    """Remembers what was said and written, and finds it again.

    All methods may be called from any thread, and any number of processes may have the same database open. A method
    that returned has written to the disk; one that raised, or was killed, has changed nothing.

    Args:
        place: a file for SQLite, such as "memory.db", or "postgresql://user@host/database".
        model: a LAM folder, Hub id, `LAMEncoder` or SentenceTransformer of a LAM, loaded when it is first needed; None
            remembers and finds by words alone.
        device: as SentenceTransformer's.
        ranking: how results are ordered (`Ranking`).
        carried: also embed every turn in the light of its whole conversation, and store the conversation's state with
            it; `Ranking(carried=...)` says how much such vectors count. Without it, adding takes half of the time.
        strengths: keep a fast and a slow strength of each memory; `Ranking(strengths=...)` says how much they count.
        now: the clock, seconds since 1970.

    Raises:
        MemoryFileRefused: for a file of another program or of a newer version of this one.
        MemoryFileDamaged: for one that cannot be read.
        MemoryUnavailable: where it cannot be made or reached.
    """

    def __init__(
        self,
        place: str | os.PathLike,
        *,
        model: Any = "LAM-base-v1",
        device: str | None = None,
        ranking: Ranking | None = None,
        carried: bool = True,
        strengths: bool = False,
        now: Callable[[], float] = time.time,
    ):
        self.ranking = ranking or Ranking()
        self.store = open_store(place)
        self._model = model
        self._device = device
        self._reader: Reader | None = None
        self._carried = carried
        self._strengths = strengths
        self._now = now
        self._lock = threading.RLock()
        self._partitions: Partitions | None = None
        self._warned = False
        # Conversations that this process has read on, by scope: (epoch, state, tokens since it was stored).
        self._conversations: dict[Scope, tuple[int, ConversationState]] = {}
        self._conversation_locks: dict[Scope, threading.Lock] = {}
        if "forgetting" in self.settings():
            with contextlib.suppress(MemoryUnavailable):  # another process holds it, or it can only be read
                self.forget()

    def __enter__(self) -> "Memory":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database. Nothing is lost without it."""
        self.store.close()

    # Writing -------------------------------------------------------------------------------------------------------

    def add(
        self,
        content: str | dict | Sequence[dict],
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        key: str | None = None,
        timestamp: str | float | datetime.datetime | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> _List[MemoryRecord]:
        """Remember a text, or the turns of a conversation; all of them or, if there is an error, none.

        Args:
            content: a text, or messages {"role", "content"} with, where there is one, a "timestamp" (as below), an
                "id" of the caller's (a message whose id the conversation has already is not added again) and
                "metadata". They go to the end of the conversation of this scope.
            user_id: whose memory it is; without a user and an agent it is shared.
            agent_id: the assistant it belongs to.
            run_id: the conversation.
            key: the name of the fact that a text states, such as "home city": the text supersedes the one that the
                same user (and agent) had under this name.
            timestamp: when it was said: ISO 8601 with a zone, a datetime with a zone, or seconds since 1970; now
                without one.
            metadata: a dictionary of JSON values that comes back with a text.

        Returns:
            the memories, in order, those that were there already included.

        Raises:
            ValueError: for content, scope, key, timestamp or metadata that cannot be stored, naming it.
            MemoryFileRefused: if the memory holds vectors of another model; `rebuild` makes new ones.
        """
        scope = Scope.of(user_id, agent_id, run_id)
        time_of = None if timestamp is None else check_time("timestamp", timestamp)
        if isinstance(content, dict):
            content = [content]
        if isinstance(content, str):
            key = None if key is None else check_name("key", key)
            return [
                self._add_text(
                    check_text("The text", content), scope, key, time_of, check_metadata("metadata", metadata)
                )
            ]
        if key is not None or metadata is not None or timestamp is not None:
            raise ValueError("key, timestamp and metadata belong to a text; a message has its own inside.")
        return self._add_messages(check_messages(content), scope)

    def _add_text(self, text: str, scope: Scope, key: str | None, at: float | None, metadata: str) -> MemoryRecord:
        computed = self._compute([text])[0]
        with self.store.write() as transaction:
            at = self._now() if at is None else at
            old = None
            if key is not None:
                rows = transaction.rows(
                    f"SELECT row_id, {RECORD} FROM memories WHERE user_id = ? AND agent_id = ? AND key = ? "
                    "AND superseded IS NULL",
                    scope.user_id, scope.agent_id, key,
                )  # fmt: skip
                old = rows[0] if rows else None
            if old is None:
                number = self._log(transaction, "added", new_id := uuid.uuid4().hex, scope.user_id, {})
                row = self._insert(
                    transaction, number, computed, id=new_id, version=1, kind="memory", scope=scope, text=text, at=at,
                    metadata=metadata, key=key,
                )  # fmt: skip
                self._begin_strength(transaction, new_id, scope, computed)
            elif old[2] == text and old[16] == metadata:
                return record_of(old[1:])  # known already
            else:
                row = self._supersede(transaction, old, computed, text, at, metadata)
            return self._record(transaction, row)

    def _supersede(
        self, transaction: Transaction, old: tuple, computed: "_Computed", text: str, at: float, metadata: str
    ) -> int:
        """A newer version of a row (row_id, *RECORD); its row_id."""
        before = record_of(old[1:])
        if at < old[9]:
            raise ValueError(
                f"timestamp {as_datetime(at).isoformat()} is earlier than that of the version it would supersede, "
                f"{before.time.isoformat()}; give a later one."
            )
        scope = Scope(old[5], old[6], old[7])
        number = self._log(transaction, "updated", before.id, scope.user_id, {"version": before.version + 1})
        transaction.run("UPDATE memories SET superseded = ?, changed = ? WHERE row_id = ?", at, number, old[0])
        return self._insert(
            transaction, number, computed, id=before.id, version=before.version + 1, kind=before.kind, scope=scope,
            text=text, at=at, metadata=metadata, key=before.key, role=before.role, position=before.position,
        )  # fmt: skip

    def _add_messages(self, messages: _List[Message], scope: Scope) -> _List[MemoryRecord]:
        computed = self._compute([message.text for message in messages])
        with self._lock:
            lock = self._conversation_locks.setdefault(scope, threading.Lock())
        with lock if self._carried else contextlib.nullcontext():
            for _ in range(_TRIES):
                written = self._try_messages(messages, computed, scope)
                if written is not None:
                    return written
        raise MemoryFileRefused(
            f"Others kept writing to the conversation {scope.run_id!r} while it was being read; try again."
        )

    def _try_messages(
        self, messages: _List[Message], computed: _List["_Computed"], scope: Scope
    ) -> _List[MemoryRecord] | None:
        """None if somebody else wrote to the conversation while its state was computed."""
        state = None
        missing: dict[int, np.ndarray] = {}
        carried: _List[np.ndarray | None] = [None] * len(messages)
        before: tuple[int, int] | None = None
        if self._carried and self._model is not None:
            with self.store.read() as transaction:
                before = self._conversation_row(transaction, scope)[:2]
                known = self._known_sources(transaction, scope)
                state = self._conversation_state(transaction, scope, missing)
            fresh = [
                i for i, message in enumerate(messages) if message.source_id is None or message.source_id not in known
            ]
            for i in fresh:
                carried[i] = self.reader.add_turn(state, messages[i].text)
        with self.store.write() as transaction:
            turns, epoch, last_time = self._conversation_row(transaction, scope)
            if before is not None and before != (turns, epoch):
                return None
            self._fill_in(transaction, scope, missing)
            known = self._known_sources(transaction, scope)
            rows = []
            number = None
            added = 0
            for i, message in enumerate(messages):
                if message.source_id is not None and message.source_id in known:
                    row_id, text = known[message.source_id]
                    if text != message.text:
                        raise ValueError(
                            f"messages[{i}]['id'] {message.source_id!r} is that of another message of this "
                            "conversation; use update to change it."
                        )
                    rows.append(row_id)
                    continue
                if message.time is not None and message.time < last_time:
                    raise ValueError(
                        f"messages[{i}]['timestamp'] is earlier than the last turn of the conversation "
                        f"({as_datetime(last_time).isoformat()}); add turns in order, or use another run_id."
                    )
                last_time = max(last_time, self._now()) if message.time is None else message.time
                new_id = uuid.uuid4().hex
                number = self._log(transaction, "added", new_id, scope.user_id, {})
                row = self._insert(
                    transaction, number, computed[i], id=new_id, version=1, kind="turn", scope=scope,
                    text=message.text, at=last_time, metadata=message.metadata, role=message.role,
                    source_id=message.source_id, position=turns, carried=carried[i],
                )  # fmt: skip
                if message.source_id is not None:
                    known[message.source_id] = (row, message.text)
                self._begin_strength(transaction, new_id, scope, computed[i])
                rows.append(row)
                turns += 1
                added += 1
            if added:
                transaction.run(
                    "INSERT INTO conversations (user_id, agent_id, run_id, turns, last_time, epoch, read_turns) "
                    "VALUES (?, ?, ?, ?, ?, 0, 0) ON CONFLICT (user_id, agent_id, run_id) "
                    "DO UPDATE SET turns = excluded.turns, last_time = excluded.last_time",
                    scope.user_id, scope.agent_id, scope.run_id, turns, last_time,
                )  # fmt: skip
            if state is not None:
                self._store_state(transaction, scope, state)
            records = [self._record(transaction, row) for row in rows]
        if state is not None:
            with self._lock:
                self._conversations[scope] = (epoch, state)
        return records

    def update(
        self,
        id: str,
        text: str,
        *,
        timestamp: str | float | datetime.datetime | None = None,
        metadata: dict[str, Any] | None = None,
        user_id: str | None = None,
    ) -> MemoryRecord:
        """Supersede a memory: searches show the new text, `history` both, `as_of=` what held then.

        Args:
            id: of a memory or a turn.
            text: what holds now.
            timestamp: since when; now without one.
            metadata: in place of what it had.
            user_id: if given, the memory has to be this user's, or shared for "".

        Raises:
            UnknownMemory: if there is no such memory (of this user).
            ValueError: for text or timestamp that do not fit, and for a document: add it again instead.
        """
        check_text("The text", text)
        time_of = None if timestamp is None else check_time("timestamp", timestamp)
        owner = check_owner(user_id)
        computed = self._compute([text])[0]
        with self.store.write() as transaction:
            old = self._current(transaction, id, owner)
            record = record_of(old[1:])
            if record.kind not in ("memory", "turn"):
                raise ValueError(f"{id} is a {record.kind}; add the changed document again under the same title.")
            fields = old[16] if metadata is None else check_metadata("metadata", metadata)
            if record.text == text and fields == old[16]:
                return record
            at = max(self._now(), old[9]) if time_of is None else time_of
            row = self._supersede(transaction, old, computed, text, at, fields)
            if record.kind == "turn":
                self._drop_state(transaction, Scope(old[5], old[6], old[7]), old[12])
                self._count_deletion(transaction, old[5])
            return self._record(transaction, row)

    def delete(self, id: str, *, user_id: str | None = None) -> None:
        """Forget a memory in all its versions, a turn, or a document with its paragraphs; nothing of it remains.

        The states of the conversation that had read it go with it (they are made again, without it, when they are
        needed), and the database file is rewritten (about a second for a million tokens).

        Raises UnknownMemory if there is no such memory (of this user, if one is given).
        """
        owner = check_owner(user_id)
        with self.store.write() as transaction:
            old = self._any_version(transaction, id, owner)
            if old[3] == "paragraph":
                raise ValueError(f"{id} is a paragraph of the document {old[13]}; delete that.")
            self._erase(transaction, "id = ?", id)
        self._after_erasing()

    def delete_all(
        self,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        everything: bool = False,
    ) -> int:
        """Forget all that belongs to a user, an assistant or a conversation; nothing of it remains.

        Args:
            user_id, agent_id, run_id: memories that have all of those given. `agent_id` alone means those that have
                this assistant and no user.
            everything: the whole memory, of all users.

        Returns:
            the number of memories.

        Raises ValueError if no scope is given and `everything` is not set.
        """
        scope = Scope.of(user_id, agent_id, run_id)
        if scope == Scope() and not everything:
            raise ValueError("delete_all needs a user_id, agent_id or run_id; everything=True forgets all users.")
        if scope != Scope() and everything:
            raise ValueError("everything=True means all users; leave the scope out.")
        where, values = _exact(scope)
        with self.store.write() as transaction:
            count = self._erase(transaction, "1 = 1" if everything else where, *([] if everything else values))
            if everything:
                for table in ("conversations", "strengths", "sessions", "events"):
                    transaction.run(f"DELETE FROM {table}")
        self._after_erasing()
        return count

    def _erase(self, transaction: Transaction, where: str, *values: Any) -> int:
        """Deletes memories with all that was made of them. where: condition on the columns that documents have too."""
        # Paragraphs go with their document.
        where = f"({where}) OR document_id IN (SELECT id FROM memories WHERE ({where}) AND kind = 'document')"
        values = (*values, *values)
        rows = transaction.rows(
            f"SELECT row_id, id, kind, user_id, agent_id, run_id, position FROM memories WHERE {where}", *values
        )
        for row_id, *_ in rows:
            transaction.run("DELETE FROM vectors WHERE row_id = ?", row_id)
            transaction.run("DELETE FROM memories WHERE row_id = ?", row_id)
        for id in {row[1] for row in rows}:
            transaction.run("DELETE FROM events WHERE id = ?", id)
            transaction.run("DELETE FROM strengths WHERE id = ?", id)
            transaction.run("DELETE FROM documents WHERE id = ?", id)
        positions: dict[Scope, int] = {}
        for row in rows:
            if row[2] == "turn":
                scope = Scope(*row[3:6])
                positions[scope] = min(positions.get(scope, row[6]), row[6])
        for scope, position in positions.items():
            self._drop_state(transaction, scope, position)
            if not transaction.rows(
                "SELECT 1 FROM memories WHERE user_id = ? AND agent_id = ? AND run_id = ? AND kind = 'turn' LIMIT 1",
                scope.user_id, scope.agent_id, scope.run_id,
            ):  # fmt: skip
                transaction.run(
                    "DELETE FROM conversations WHERE user_id = ? AND agent_id = ? AND run_id = ?",
                    scope.user_id, scope.agent_id, scope.run_id,
                )  # fmt: skip
        for user in {row[3] for row in rows}:
            self._count_deletion(transaction, user)
        # Whoever opens the memory after a kill between here and the end of `forget` goes on with it.
        transaction.run("INSERT INTO settings (name, value) VALUES ('forgetting', '1') ON CONFLICT (name) DO NOTHING")
        for id, user in {(row[1], row[3]) for row in rows if row[2] != "paragraph"}:
            self._log(transaction, "deleted", id, user, {})
        return len({row[1] for row in rows if row[2] != "paragraph"})

    def _after_erasing(self) -> None:
        with self._lock:
            self._conversations.clear()
            if self._partitions is not None:
                self._partitions.clear()
            if self._reader is not None:
                self._reader.forget_queries()
        self.forget()

    # Documents -----------------------------------------------------------------------------------------------------

    def add_document(
        self,
        source: str | os.PathLike,
        *,
        title: str | None = None,
        user_id: str | None = None,
        agent_id: str | None = None,
        timestamp: str | float | datetime.datetime | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> MemoryRecord:
        """Remember a whole document, read in one pass: a vector for each paragraph, and one for the document.

        A document that is interrupted, even by a kill, goes on where it was when it is added again. The same document
        again is recognised by its hash and costs nothing; a changed one of the same title becomes its next version.

        Args:
            source: a text, or a `Path` to a file of plain text, Markdown or PDF (extra `pdf`).
            title: the file's name, or the text's first line, without one.
            user_id, agent_id: whose it is; shared without.
            timestamp: since when it holds.
            metadata: as for `add`.

        Returns:
            the memory of kind "document"; its text is the title.

        Raises:
            ValueError: for a document without text, or a file that is no text.
            OSError: for a file that cannot be read.
            ImportError: for a PDF without pypdf.
        """
        return documents.add_document(self, source, title, Scope.of(user_id, agent_id), timestamp, metadata)

    def document(self, id: str, *, user_id: str | None = None) -> str:
        """The whole text of a document. Raises UnknownMemory if there is none (of this user)."""
        with self.store.read() as transaction:
            old = self._any_version(transaction, id, check_owner(user_id), shared=True)
            rows = transaction.rows("SELECT text FROM documents WHERE id = ? ORDER BY version DESC LIMIT 1", old[1])
        if not rows:
            raise UnknownMemory(f"{id!r} is no document.")
        return rows[0][0]

    # Reading -------------------------------------------------------------------------------------------------------

    def search(
        self,
        query: str,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        top_k: int = 10,
        kinds: Iterable[str] | None = None,
        after: str | float | datetime.datetime | None = None,
        before: str | float | datetime.datetime | None = None,
        as_of: str | float | datetime.datetime | None = None,
        explain: bool = False,
        ranking: Ranking | None = None,
    ) -> _List[SearchResult]:
        """What answers a question best, best first.

        Args:
            query: plain words; nothing in them is syntax.
            user_id: this user's memories and the shared ones are searched, nobody else's; only shared ones without.
            agent_id: of the user's memories only those of this assistant or of none; of those without a user, this
                assistant's too.
            run_id: only this conversation and what belongs to none.
            top_k: number of results, at most.
            kinds: of "memory", "turn", "paragraph", "document", those to search; all without.
            after, before: only what was said at or after, or before, a time.
            as_of: answer from what was known, and held, at a time.
            explain: give every part of the score.
            ranking: in place of the memory's own.

        Raises ValueError for arguments that do not fit, naming them.
        """
        check_text("The query", query, 100_000)
        if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= 1000:
            raise ValueError(f"top_k must be a whole number from 1 to 1000, got {top_k!r}.")
        scope = Scope.of(user_id, agent_id, run_id)
        chosen = None if kinds is None else check_kinds(kinds)
        start = None if after is None else check_time("after", after)
        end = None if before is None else check_time("before", before)
        known = None if as_of is None else check_time("as_of", as_of)
        return search(self, query, scope, top_k, chosen, start, end, known, explain, ranking or self.ranking)

    def get(self, id: str, *, user_id: str | None = None) -> MemoryRecord:
        """A memory in the version that holds. Raises UnknownMemory if there is none (of this user, or shared)."""
        owner = check_owner(user_id)
        with self.store.read() as transaction:
            return record_of(self._current(transaction, id, owner, shared=True)[1:])

    def list(
        self,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        kinds: Iterable[str] | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> _List[MemoryRecord]:
        """Memories that hold, in the order in which they were written.

        Args:
            user_id, agent_id, run_id: as for `delete_all`; without any, the shared ones.
            kinds: as for `search`; all but paragraphs without.
            limit, offset: a page of them.
        """
        scope = Scope.of(user_id, agent_id, run_id)
        chosen = ("memory", "turn", "document") if kinds is None else check_kinds(kinds)
        for name, value in (("limit", limit), ("offset", offset)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} must be a whole number from 0 on, got {value!r}.")
        where, values = _exact(scope)
        marks = ", ".join("?" * len(chosen))
        with self.store.read() as transaction:
            rows = transaction.rows(
                f"SELECT {RECORD} FROM memories WHERE {where} AND kind IN ({marks}) AND superseded IS NULL "
                "ORDER BY row_id LIMIT ? OFFSET ?",
                *values, *chosen, limit, offset,
            )  # fmt: skip
        return [record_of(row) for row in rows]

    def history(self, id: str, *, user_id: str | None = None) -> _List[MemoryRecord]:
        """All versions of a memory, the oldest first. Raises UnknownMemory as `get` does."""
        owner = check_owner(user_id)
        with self.store.read() as transaction:
            self._any_version(transaction, id, owner, shared=True)
            rows = transaction.rows(f"SELECT {RECORD} FROM memories WHERE id = ? ORDER BY version", id)
        return [record_of(row) for row in rows]

    def events(self, id: str | None = None, *, user_id: str | None = None) -> _List[dict[str, Any]]:
        """The log, or what it says of one memory: dictionaries with number, time, kind, id and what was changed."""
        where, values = ("1 = 1", []) if id is None else ("id = ?", [id])
        if user_id is not None:
            where, values = f"{where} AND user_id = ?", [*values, check_name("user_id", user_id)]
        with self.store.read() as transaction:
            rows = transaction.rows(
                f"SELECT number, time, kind, id, data FROM events WHERE {where} ORDER BY number", *values
            )
        return [
            {"number": row[0], "time": as_datetime(row[1]), "kind": row[2], "id": row[3], **json.loads(row[4])}
            for row in rows
        ]

    def gist(self, *, user_id: str | None = None, agent_id: str | None = None, run_id: str | None = None) -> np.ndarray:
        """[D] float32: the embedding of a conversation as one text, its turns joined by blank lines.

        Only the turns since the stored state are read, and the state after them is stored.

        Raises UnknownMemory if there is no such conversation, ValueError without a model.
        """
        scope = Scope.of(user_id, agent_id, run_id)
        self._check_fits()
        if self._model is None:
            raise ValueError("A memory without a model has no vectors; open it with model=...")
        with self.store.read() as transaction:
            turns, epoch, _ = self._conversation_row(transaction, scope)
            if not turns:
                raise UnknownMemory(f"There is no conversation {scope.run_id!r} in this scope.")
            state = self._conversation_state(transaction, scope)
        with contextlib.suppress(MemoryUnavailable), self.store.write() as transaction:
            if self._conversation_row(transaction, scope)[:2] == (turns, epoch):
                self._store_state(transaction, scope, state)
        with self._lock:
            self._conversations[scope] = (epoch, state)
        return self.reader.gist(state)

    # Upkeep --------------------------------------------------------------------------------------------------------

    def export(self, path: str | os.PathLike) -> int:
        """Write all memories, with their history, as JSON lines; intact ones of a damaged database too.

        The file is replaced only when the new one is complete. Returns the number of lines that hold a memory or a
        document; what could not be read is logged as a warning.
        """
        return transfer.export(self, Path(path))

    def import_(self, path: str | os.PathLike) -> int:
        """Add all memories of an export, with their ids, versions and times; those that are there stay as they are.

        Returns the number of memories and documents added. Raises ValueError for a file that is no export, naming the
        line.
        """
        return transfer.import_(self, Path(path))

    def verify(self) -> _List[str]:
        """What is damaged, one line each, naming it; an empty list if all is well."""
        return upkeep.verify(self)

    def rebuild(self, model: Any = None) -> int:
        """Make all that is computed from the texts again: words, vectors, states; with another model, if given.

        An interrupted one goes on when it is called again. Returns the number of memories' versions.
        """
        return upkeep.rebuild(self, model)

    def stats(self) -> dict[str, Any]:
        """Numbers of memories, versions, users, conversations and documents, bytes on disk, schema and model."""
        return upkeep.stats(self)

    def forget(self) -> None:
        """Rewrite the database files without what was deleted; `delete` and `delete_all` do it by themselves."""
        self.store.forget()
        with self.store.write() as transaction:
            transaction.run("DELETE FROM settings WHERE name = 'forgetting'")

    # Shared by the modules of this room ------------------------------------------------------------------------------

    @property
    def reader(self) -> "Reader":
        """The model. Raises ValueError for a memory without one."""
        if self._model is None:
            raise ValueError("This memory was opened without a model.")
        with self._lock:
            if self._reader is None:
                from .reading import Reader

                self._reader = self._model if isinstance(self._model, Reader) else Reader(self._model, self._device)
            return self._reader

    def use_model(self, model: Any) -> None:
        """The model from now on."""
        with self._lock:
            self._model = model
            self._reader = None
            self._partitions = None
            self._warned = False
            self._conversations.clear()

    @property
    def has_model(self) -> bool:
        return self._model is not None

    @property
    def partitions(self) -> Partitions:
        with self._lock:
            if self._partitions is None:
                dimension = self.settings().get("dimension")
                if dimension is None:
                    dimension = self.reader.dimension if self.has_model else 1
                self._partitions = Partitions(self.store, int(dimension))
            return self._partitions

    def settings(self) -> dict[str, str]:
        with self.store.read() as transaction:
            return dict(transaction.rows("SELECT name, value FROM settings"))

    def model_fits(self) -> bool:
        """Whether the stored vectors are this model's, all of them."""
        if not self.has_model:
            return False
        settings = self.settings()
        written_by = settings.get("model")
        if "rebuilding" in settings:
            return False  # somebody is making new ones
        fits = written_by is None or written_by == self.reader.fingerprint
        if not fits and not self._warned:
            self._warned = True
            logger.warning(
                "%s holds vectors of another model (%s); it is searched by words alone until rebuild() has made new "
                "ones.", self.store.place, settings.get("model_name"),
            )  # fmt: skip
        return fits

    def _check_fits(self) -> None:
        if self.has_model and not self.model_fits():
            raise MemoryFileRefused(
                f"{self.store.place} holds vectors of another model ({self.settings().get('model_name')}) or is being "
                "rebuilt; open it with that model, or call rebuild() first. It can be searched by words meanwhile."
            )

    def _compute(self, texts: _List[str]) -> _List["_Computed"]:
        """Vectors and words of texts."""
        self._check_fits()
        words = [count_words(text).tobytes() for text in texts]
        if not self.has_model:
            return [_Computed(None, None, None, entries) for entries in words]
        readings = self.reader.read(texts)
        return [
            _Computed(
                reading.alone.astype("<f4").tobytes(), reading.passages.astype("<f4").tobytes(),
                reading.spans.astype("<i4").tobytes(), entries,
            )
            for reading, entries in zip(readings, words, strict=True)
        ]  # fmt: skip

    def _claim(self, transaction: Transaction) -> None:
        """Vectors of this model are written: from now on the memory is this model's."""
        if transaction.rows("SELECT 1 FROM settings WHERE name = 'rebuilding'"):
            raise MemoryFileRefused(f"{self.store.place} is being rebuilt; try again when that is done.")
        rows = transaction.rows("SELECT value FROM settings WHERE name = 'model'")
        if not rows:
            values = {
                "model": self.reader.fingerprint,
                "model_name": self.reader.name,
                "dimension": str(self.reader.dimension),
            }
            for name, value in values.items():
                transaction.run("INSERT INTO settings (name, value) VALUES (?, ?)", name, value)
            with self._lock:
                if self._partitions is not None and self._partitions.dimension != self.reader.dimension:
                    self._partitions = None
        elif rows[0][0] != self.reader.fingerprint:
            raise MemoryFileRefused(f"{self.store.place} was given to another model meanwhile; nothing was added.")

    def _log(self, transaction: Transaction, kind: str, id: str | None, user_id: str, data: dict) -> int:
        """Writes an event; its number."""
        rows = transaction.rows(
            "INSERT INTO events (time, kind, id, user_id, data) VALUES (?, ?, ?, ?, ?) RETURNING number",
            self._now(), kind, id, user_id, as_json(data),
        )  # fmt: skip
        return int(rows[0][0])

    def _insert(
        self,
        transaction: Transaction,
        number: int,
        computed: "_Computed",
        *,
        id: str,
        version: int,
        kind: str,
        scope: Scope,
        text: str,
        at: float,
        metadata: str = "{}",
        superseded: float | None = None,
        key: str | None = None,
        role: str | None = None,
        source_id: str | None = None,
        position: int | None = None,
        document_id: str | None = None,
        span: tuple[int, int] | None = None,
        carried: np.ndarray | None = None,
    ) -> int:
        """Writes a version of a memory with its vectors and words; its row_id."""
        if computed.alone is not None:
            self._claim(transaction)
        start, end = span or (None, None)
        row = int(
            transaction.rows(
                "INSERT INTO memories (id, version, kind, user_id, agent_id, run_id, role, key, source_id, text, "
                "metadata, time, superseded, position, document_id, start_at, end_at, digest, changed) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING row_id",
                id, version, kind, scope.user_id, scope.agent_id, scope.run_id, role, key, source_id, text, metadata,
                at, superseded, position, document_id, start, end, digest_of(text, metadata), number,
            )[0][0]
        )  # fmt: skip
        self._write_vectors(transaction, row, computed, None if carried is None else carried.astype("<f4").tobytes())
        return row

    def _write_vectors(
        self, transaction: Transaction, row: int, computed: "_Computed", carried: bytes | None = None
    ) -> None:
        values = (computed.alone, computed.passages, computed.spans, carried, computed.words)
        transaction.run(
            "INSERT INTO vectors (row_id, alone, passages, spans, carried, words, digest) VALUES (?, ?, ?, ?, ?, ?, ?)",
            row, *values, digest_of(*values),
        )  # fmt: skip

    def _record(self, transaction: Transaction, row: int) -> MemoryRecord:
        return record_of(transaction.rows(f"SELECT {RECORD} FROM memories WHERE row_id = ?", row)[0])

    def _current(self, transaction: Transaction, id: str, user_id: str | None, shared: bool = False) -> tuple:
        """(row_id, *RECORD) of the version that holds. A memory of another user is as unknown as one that is not."""
        return self._one(transaction, "superseded IS NULL", id, user_id, shared)

    def _any_version(self, transaction: Transaction, id: str, user_id: str | None, shared: bool = False) -> tuple:
        return self._one(transaction, "1 = 1", id, user_id, shared)

    @staticmethod
    def _one(transaction: Transaction, where: str, id: str, user_id: str | None, shared: bool) -> tuple:
        if not isinstance(id, str) or "\0" in id:
            raise UnknownMemory(f"There is no memory {id!r}.")
        rows = transaction.rows(
            f"SELECT row_id, {RECORD} FROM memories WHERE id = ? AND {where} ORDER BY version DESC LIMIT 1", id
        )
        allowed = {user_id, ""} if shared else {user_id}
        if not rows or (user_id is not None and rows[0][5] not in allowed):
            raise UnknownMemory(f"There is no memory {id[:80]!r}.")
        return rows[0]

    @staticmethod
    def _count_deletion(transaction: Transaction, user_id: str) -> None:
        transaction.run(
            "INSERT INTO deletions (user_id, number) VALUES (?, 1) "
            "ON CONFLICT (user_id) DO UPDATE SET number = deletions.number + 1",
            user_id,
        )

    # Conversations ---------------------------------------------------------------------------------------------------

    @staticmethod
    def _conversation_row(transaction: Transaction, scope: Scope) -> tuple[int, int, float]:
        """Turns, epoch and time of the last turn."""
        rows = transaction.rows(
            "SELECT turns, epoch, last_time FROM conversations WHERE user_id = ? AND agent_id = ? AND run_id = ?",
            scope.user_id, scope.agent_id, scope.run_id,
        )  # fmt: skip
        return rows[0] if rows else (0, 0, float("-inf"))

    @staticmethod
    def _known_sources(transaction: Transaction, scope: Scope) -> dict[str, tuple[int, str]]:
        rows = transaction.rows(
            "SELECT source_id, row_id, text FROM memories WHERE user_id = ? AND agent_id = ? AND run_id = ? "
            "AND source_id IS NOT NULL",
            scope.user_id, scope.agent_id, scope.run_id,
        )  # fmt: skip
        return {source: (int(row_id), text) for source, row_id, text in rows}

    def _conversation_state(
        self, transaction: Transaction, scope: Scope, missing: dict[int, np.ndarray] | None = None
    ) -> "ConversationState":
        """The state after all turns that the transaction sees, a copy: from this process, the store, or the texts.

        missing: takes the carried vectors, by row, of turns that are read again here and have none.
        """
        from .reading import ConversationState

        _, epoch, _ = self._conversation_row(transaction, scope)
        with self._lock:
            kept = self._conversations.get(scope)
        state = None
        if kept is not None and kept[0] == epoch:
            state = kept[1].copy()
        else:
            rows = transaction.rows(
                "SELECT state, tail FROM conversations WHERE user_id = ? AND agent_id = ? AND run_id = ? "
                "AND state IS NOT NULL",
                scope.user_id, scope.agent_id, scope.run_id,
            )  # fmt: skip
            if rows:
                try:
                    state = ConversationState.from_bytes(bytes(rows[0][0]))
                except ValueError:
                    logger.warning("The state of the conversation %r is damaged; it is read again.", scope.run_id)
        if state is None or (
            state.state is not None and state.state.fingerprint != self.reader.parts.lam.fingerprint()
        ):
            state = self.reader.new_conversation()
        turns = transaction.rows(
            "SELECT text, row_id FROM memories WHERE user_id = ? AND agent_id = ? AND run_id = ? AND kind = 'turn' "
            "AND superseded IS NULL ORDER BY position",
            scope.user_id, scope.agent_id, scope.run_id,
        ) if self._turns(transaction, scope) != state.turns else []  # fmt: skip
        if len(turns) < state.turns:
            state = state if not turns else self.reader.new_conversation()
        for text, row in turns[state.turns :]:
            vector = self.reader.add_turn(state, text)
            if missing is not None:
                missing[row] = vector
        return state

    def _fill_in(self, transaction: Transaction, scope: Scope, vectors: dict[int, np.ndarray]) -> None:
        """Carried vectors of turns that have none, because something before them was forgotten or changed."""
        filled = 0
        for row, vector in vectors.items():
            rows = transaction.rows(
                "SELECT alone, passages, spans, words FROM vectors WHERE row_id = ? AND carried IS NULL", row
            )
            if rows:
                data = vector.astype("<f4").tobytes()
                alone, passages, spans, words = rows[0]
                transaction.run(
                    "UPDATE vectors SET carried = ?, digest = ? WHERE row_id = ?",
                    data, digest_of(alone, passages, spans, data, words), row,
                )  # fmt: skip
                filled += 1
        if filled:
            self._count_deletion(transaction, scope.user_id)

    def refill(self, scope: Scope) -> None:
        """Read a conversation to its end and give its turns the carried vectors that they lack."""
        if self._carried and self.has_model:
            for _ in range(_TRIES):
                if self._try_messages([], [], scope) is not None:
                    return

    @staticmethod
    def _turns(transaction: Transaction, scope: Scope) -> int:
        return transaction.rows(
            "SELECT count(*) FROM memories WHERE user_id = ? AND agent_id = ? AND run_id = ? AND kind = 'turn' "
            "AND superseded IS NULL",
            scope.user_id, scope.agent_id, scope.run_id,
        )[0][0]  # fmt: skip

    def _store_state(self, transaction: Transaction, scope: Scope, state: "ConversationState") -> None:
        """Stores a state unless the stored one is near enough: what is between them is read again, from the texts."""
        rows = transaction.rows(
            "SELECT read_turns, tail FROM conversations WHERE user_id = ? AND agent_id = ? AND run_id = ?",
            scope.user_id, scope.agent_id, scope.run_id,
        )  # fmt: skip
        tokens = 0 if state.state is None else int(state.state.seen[0])
        stored = int.from_bytes(rows[0][1], "little") if rows and rows[0][1] is not None else -_STATE_EVERY
        if tokens - stored < _STATE_EVERY:
            return
        data = state.head_bytes()
        transaction.run(
            "UPDATE conversations SET state = ?, tail = ?, read_turns = ?, digest = ? "
            "WHERE user_id = ? AND agent_id = ? AND run_id = ?",
            data, tokens.to_bytes(8, "little"), state.turns, digest_of(data),
            scope.user_id, scope.agent_id, scope.run_id,
        )  # fmt: skip

    @staticmethod
    def _drop_state(transaction: Transaction, scope: Scope, position: int = 0) -> None:
        """Everything that has read the turn at a position: the state, and the carried vectors from there on."""
        transaction.run(
            "UPDATE conversations SET state = NULL, tail = NULL, digest = NULL, read_turns = 0, epoch = epoch + 1 "
            "WHERE user_id = ? AND agent_id = ? AND run_id = ?",
            scope.user_id, scope.agent_id, scope.run_id,
        )  # fmt: skip
        rows = transaction.rows(
            "SELECT v.row_id, v.alone, v.passages, v.spans, v.words FROM vectors v JOIN memories m "
            "ON m.row_id = v.row_id WHERE m.user_id = ? AND m.agent_id = ? AND m.run_id = ? AND m.position >= ? "
            "AND m.kind = 'turn' AND v.carried IS NOT NULL",
            scope.user_id, scope.agent_id, scope.run_id, position,
        )  # fmt: skip
        for row, alone, passages, spans, words in rows:
            transaction.run(
                "UPDATE vectors SET carried = NULL, digest = ? WHERE row_id = ?",
                digest_of(alone, passages, spans, None, words), row,
            )  # fmt: skip

    # Strengths -------------------------------------------------------------------------------------------------------

    def _begin_strength(self, transaction: Transaction, id: str, scope: Scope, computed: "_Computed") -> None:
        if self._strengths:
            from .strengths import begin

            begin(self, transaction, id, scope, computed.alone)


class _Computed:
    """Bytes that are stored for a text: vectors, spans and words (the first three None without a model)."""

    def __init__(self, alone: bytes | None, passages: bytes | None, spans: bytes | None, words: bytes):
        self.alone = alone
        self.passages = passages
        self.spans = spans
        self.words = words


def open_store(place: str | os.PathLike) -> Store:
    """The store that a place names."""
    if isinstance(place, str) and place.startswith(("postgresql://", "postgres://")):
        from .postgres import PostgresStore

        return PostgresStore(place)
    from .sqlite import SQLiteStore

    return SQLiteStore(place)


def record_of(row: tuple) -> MemoryRecord:
    """A row of RECORD."""
    (id, text, kind, version, user_id, agent_id, run_id, role, at, superseded, key, position, document_id, start, end,
     metadata) = row  # fmt: skip
    return MemoryRecord(
        id=id, text=text, kind=kind, version=version, user_id=user_id or None, agent_id=agent_id or None,
        run_id=run_id or None, role=role, time=as_datetime(at),
        superseded=None if superseded is None else as_datetime(superseded), key=key, position=position,
        document_id=document_id, start=start, end=end, metadata=json.loads(metadata),
    )  # fmt: skip


def digest_of(*values: str | bytes | None) -> str:
    """Hexadecimal digest of texts and bytes, by which a flipped bit is found."""
    digest = hashlib.blake2b(digest_size=16)
    for value in values:
        data = b"" if value is None else value.encode() if isinstance(value, str) else bytes(value)
        digest.update(f"{'-' if value is None else len(data)} ".encode())
        digest.update(data)
    return digest.hexdigest()


def check_owner(user_id: str | None) -> str | None:
    """Whose a memory has to be: None for anybody's, "" for shared ones only. Raises ValueError for what is no name."""
    return user_id if user_id is None or user_id == "" else check_name("user_id", user_id)


def check_kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    """Raises ValueError for kinds that there are not."""
    chosen = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    wrong = [kind for kind in chosen if kind not in KINDS]
    if wrong or not chosen:
        raise ValueError(f"kinds are {', '.join(KINDS)}, got {', '.join(map(repr, wrong)) or 'none'}.")
    return chosen


def _exact(scope: Scope) -> tuple[str, list[str]]:
    """A condition for memories of a scope: the user named (or none), and the agent and run where they are given."""
    where = "user_id = ?"
    values = [scope.user_id]
    for name in ("agent_id", "run_id"):
        if value := getattr(scope, name):
            where += f" AND {name} = ?"
            values.append(value)
    return where, values
