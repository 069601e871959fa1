"""`Memory`: what a user of the service holds in the hand. What each method does is in the module that it calls."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import adding, conversations, documents, forgetting, lookup, searching, transfer, upkeep
from .engine import Engine, open_store
from .errors import MemoryUnavailable
from .index import Partitions
from .ranking import Ranking
from .records import ConversationRecord, MemoryRecord, Scope, SearchResult, Time, owner_of
from .scoped import ScopedMemory
from .store import Store

if TYPE_CHECKING:
    from .reading import Reader

_List = list  # `list` is a method of Memory


class Memory:
    """Remembers what was said and written, and finds it again; all of it, for whoever owns the database.

    All methods may be called from any thread, and any number of processes may have the same database open. A method
    that returned has written to the disk; one that raised, or was killed, has changed nothing.

    Args:
        place: a file for SQLite, such as "memory.db", or "postgresql://user@host/database".
        model: a LAM folder, Hub id, `LAMEncoder` or SentenceTransformer of a LAM, loaded when it is first needed; None
            remembers and finds by words alone.
        device: as SentenceTransformer's.
        ranking: how results are ordered (`Ranking`).
        carried: also embed every turn in the light of its whole conversation, and store the conversation's state with
            it; `Ranking(carried=...)` says how much such vectors count. Without it, adding takes a third of the time.
        strengths: keep a fast and a slow strength of each memory; `Ranking(strengths=...)` says how much they count.
        now: the clock, seconds since 1970.

    Raises:
        MemoryFileRefused: for a file of another program or of a newer version of this one.
        MemoryFileDamaged: for one that cannot be read.
        MemoryUnavailable: where it cannot be made or reached.
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        *,
        model: Any = "LAM-base-v1",
        device: str | None = None,
        ranking: Ranking | None = None,
        carried: bool = True,
        strengths: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.ranking = ranking or Ranking()
        self.engine = Engine(open_store(place), model, device, carried, strengths, now)
        if "forgetting" in self.engine.settings():
            with contextlib.suppress(MemoryUnavailable):  # another process holds it, or it can only be read
                self.forget()

    def __enter__(self) -> "Memory":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database. Nothing is lost without it."""
        self.engine.store.close()

    def within(
        self, *, user_id: str | None = None, agent_id: str | None = None, run_id: str | None = None
    ) -> ScopedMemory:
        """The part of the memory that a user, an assistant or a conversation may see and change.

        A `Memory` is its owner's: `get`, `history`, `document`, `events`, `update` and `delete` reach every user's
        memory by its id unless they are given a `user_id`, as the owner can open the database anyway. Whatever
        answers to somebody else, such as a server or an assistant's tools, should be given this instead.

        Args:
            user_id: whose; without a user and an agent, the shared part.
            agent_id: only this assistant's part of it.
            run_id: only this conversation's part of it.
        """
        return ScopedMemory(self.engine, self.ranking, Scope.of(user_id, agent_id, run_id))

    # Writing -------------------------------------------------------------------------------------------------------

    def add(
        self,
        content: str | dict[str, Any] | Sequence[dict[str, Any]],
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        key: str | None = None,
        timestamp: Time | None = None,
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
        return adding.add(self.engine, content, Scope.of(user_id, agent_id, run_id), key, timestamp, metadata)

    def update(
        self,
        id: str,
        text: str,
        *,
        timestamp: Time | None = None,
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
        return adding.update(self.engine, id, text, timestamp, metadata, owner_of(user_id))

    def add_document(
        self,
        source: str | os.PathLike[str],
        *,
        title: str | None = None,
        user_id: str | None = None,
        agent_id: str | None = None,
        timestamp: Time | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> MemoryRecord:
        """Remember a whole document, read in one pass: a vector for each paragraph, and one for the document.

        A document that is interrupted, even by a kill, goes on where it was when it is added again. The same document
        again is recognised by its hash and costs nothing; a changed one of the same title becomes its next version.

        Args:
            source: a text, or a `Path` to a file of plain text, Markdown or PDF (extra `memory`).
            title: the file's name, or the text's first line, without one.
            user_id: whose it is; without a user and an agent it is shared.
            agent_id: the assistant it belongs to.
            timestamp: since when it holds.
            metadata: as for `add`.

        Returns:
            the memory of kind "document"; its text is the title.

        Raises:
            ValueError: for a document without text, or a file that is no text.
            OSError: for a file that cannot be read.
            ImportError: for a PDF without pypdf.
        """
        scope = Scope.of(user_id, agent_id)
        return documents.add_document(self.engine, source, title, scope, timestamp, metadata)

    # Forgetting ----------------------------------------------------------------------------------------------------

    def delete(self, id: str, *, user_id: str | None = None) -> None:
        """Forget a memory in all its versions, a turn, or a document with its paragraphs; nothing of it remains.

        The states of the conversation that had read it go with it (they are made again, without it, when they are
        needed), and the database file is rewritten (about a second for a million tokens).

        Raises UnknownMemory if there is no such memory (of this user, if one is given).
        """
        forgetting.delete(self.engine, id, owner_of(user_id))

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
            user_id: only what belongs to this user; what belongs to no user without.
            agent_id: only what belongs to this assistant.
            run_id: only what belongs to this conversation.
            everything: the whole memory, of all users.

        Returns:
            the number of memories.

        Raises ValueError if no scope is given and `everything` is not set.
        """
        return forgetting.delete_all(self.engine, Scope.of(user_id, agent_id, run_id), everything)

    def forget(self) -> None:
        """Rewrite the database files without what was deleted; `delete` and `delete_all` do it by themselves."""
        forgetting.clean(self.engine)

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
        after: Time | None = None,
        before: Time | None = None,
        as_of: Time | None = None,
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
            after: only what was said at this time or later.
            before: only what was said before this time.
            as_of: answer from what was known, and held, at a time.
            explain: give every part of the score.
            ranking: in place of the memory's own.

        Raises ValueError for arguments that do not fit, naming them.
        """
        question = searching.Question.of(
            query,
            Scope.of(user_id, agent_id, run_id),
            top_k,
            kinds,
            after,
            before,
            as_of,
            explain,
            ranking or self.ranking,
        )
        return searching.search(self.engine, question)

    def get(self, id: str, *, user_id: str | None = None) -> MemoryRecord:
        """A memory in the version that holds. Raises UnknownMemory if there is none (of this user, or shared)."""
        return lookup.get(self.engine.store, id, owner_of(user_id))

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
            user_id: whose; those of no user without.
            agent_id: only those of this assistant.
            run_id: only those of this conversation.
            kinds: as for `search`; all but paragraphs without.
            limit: number of memories, at most.
            offset: number of memories to leave out first.
        """
        return lookup.listed(self.engine.store, Scope.of(user_id, agent_id, run_id), kinds, limit, offset)

    def conversations(
        self,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> _List[ConversationRecord]:
        """Conversations with the number of their turns and their times, the one that was last spoken in first.

        Args:
            user_id: whose; those of no user without.
            agent_id: only those of this assistant.
            run_id: only this one.
            limit: number of conversations, at most.
            offset: number of conversations to leave out first.
        """
        return lookup.conversations(self.engine.store, Scope.of(user_id, agent_id, run_id), limit, offset)

    def history(self, id: str, *, user_id: str | None = None) -> _List[MemoryRecord]:
        """All versions of a memory, the oldest first. Raises UnknownMemory as `get` does."""
        return lookup.history(self.engine.store, id, owner_of(user_id))

    def document(self, id: str, *, user_id: str | None = None) -> str:
        """The whole text of a document. Raises UnknownMemory if there is none (of this user)."""
        return lookup.document(self.engine.store, id, owner_of(user_id))

    def events(self, id: str | None = None, *, user_id: str | None = None) -> _List[dict[str, Any]]:
        """The log, or what it says of one memory: dictionaries with number, time, kind, id and what was changed."""
        return lookup.events(self.engine.store, id, user_id)

    def gist(self, *, user_id: str | None = None, agent_id: str | None = None, run_id: str | None = None) -> np.ndarray:
        """[D] float32: the embedding of a conversation as one text, its turns joined by blank lines.

        Only the turns since the stored state are read, and the state after them is stored.

        Raises UnknownMemory if there is no such conversation, ValueError without a model.
        """
        return conversations.gist(self.engine, Scope.of(user_id, agent_id, run_id))

    # Upkeep --------------------------------------------------------------------------------------------------------

    def export(self, path: str | os.PathLike[str]) -> int:
        """Write all memories, with their history, as JSON lines; intact ones of a damaged database too.

        The file is replaced only when the new one is complete. Returns the number of lines that hold a memory or a
        document; what could not be read is logged as a warning.
        """
        return transfer.export(self.engine, Path(path))

    def import_(self, path: str | os.PathLike[str]) -> int:
        """Add all memories of an export, with their ids, versions and times; those that are there stay as they are.

        Returns the number of memories and documents added. Raises ValueError for a file that is no export, naming the
        line.
        """
        return transfer.import_(self.engine, Path(path))

    def verify(self) -> _List[str]:
        """What is damaged, one line each, naming it; an empty list if all is well."""
        return upkeep.verify(self.engine)

    def rebuild(self, model: Any = None) -> int:
        """Make all that is computed from the texts again: words, vectors, states; with another model, if given.

        An interrupted one goes on when it is called again. Returns the number of memories' versions.
        """
        return upkeep.rebuild(self.engine, model)

    def stats(self) -> dict[str, Any]:
        """Numbers of memories, versions, users, conversations and documents, bytes on disk, schema and model."""
        return upkeep.stats(self.engine)

    # For those who look inside -------------------------------------------------------------------------------------

    @property
    def store(self) -> Store:
        """The database."""
        return self.engine.store

    @property
    def reader(self) -> "Reader":
        """The model. Raises ValueError for a memory without one."""
        return self.engine.reader

    @property
    def partitions(self) -> Partitions:
        """The vectors and words that are kept in memory."""
        return self.engine.partitions

    def settings(self) -> dict[str, str]:
        """What the database says of itself, by name: schema, model, dimension."""
        return self.engine.settings()
