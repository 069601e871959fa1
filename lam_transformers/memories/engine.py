"""What all operations on one memory share: its store, its model, its clock, and what this process keeps in memory."""

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import MemoryFileRefused
from .index import Partitions
from .postgres import PostgresStore
from .records import Scope
from .rows import Computed
from .sqlite import SQLiteStore
from .store import Store, Transaction
from .words import count_words

if TYPE_CHECKING:
    from .reading import ConversationState, Reader

logger = logging.getLogger(__name__)

_STATES = 64  # conversations whose states are kept in memory (LAM-base-v1: 0.7 MB each)


@dataclass(frozen=True)
class KeptState:
    """The state of a conversation in its `epoch`, after its first `turns` turns (those deleted meanwhile included)."""

    epoch: int
    turns: int
    state: "ConversationState"


class Engine:
    """The shared part of a memory; the modules above it do the work.

    Args:
        store: where everything is.
        model: a LAM folder, Hub id, `LAMEncoder`, SentenceTransformer or `Reader`; None for words alone.
        device: as SentenceTransformer's.
        keeps_carried: whether turns are also embedded in the light of their conversation.
        keeps_strengths: whether strengths are kept.
        now: the clock, seconds since 1970.

    Attributes:
        lock: guards what this process keeps in memory.
        conversation_locks: one thread at a time reads a conversation on.
    """

    def __init__(
        self,
        store: Store,
        model: Any,
        device: str | None,
        keeps_carried: bool,
        keeps_strengths: bool,
        now: Callable[[], float],
    ) -> None:
        self.store = store
        self.keeps_carried = keeps_carried
        self.keeps_strengths = keeps_strengths
        self.now = now
        self.lock = threading.RLock()
        self._conversations: OrderedDict[Scope, KeptState] = OrderedDict()
        self.conversation_locks: dict[Scope, threading.Lock] = {}
        self._model = model
        self._device = device
        self._reader: Reader | None = None
        self._partitions: Partitions | None = None
        self._warned = False

    @property
    def has_model(self) -> bool:
        """Whether there are vectors, or words alone."""
        return self._model is not None

    @property
    def reader(self) -> "Reader":
        """The model. Raises ValueError for a memory without one."""
        if self._model is None:
            raise ValueError("This memory was opened without a model.")
        with self.lock:
            if self._reader is None:
                # Imported here because torch takes seconds to import, which a memory that finds by words alone, or
                # one that is only listed or exported, need not wait for.
                from .reading import Reader

                self._reader = self._model if isinstance(self._model, Reader) else Reader(self._model, self._device)
            return self._reader

    def use_model(self, model: Any) -> None:
        """From now on this is the model; None leaves the one there is and lets go of what was kept for it."""
        with self.lock:
            if model is not None:
                self._model = model
                self._reader = None
            self._partitions = None
            self._warned = False
            self._conversations.clear()

    @property
    def partitions(self) -> Partitions:
        """The vectors and words of the users who were asked about last."""
        with self.lock:
            if self._partitions is None:
                stored = self.settings().get("dimension")
                own = self.reader.dimension if stored is None and self.has_model else 1
                self._partitions = Partitions(self.store, own if stored is None else int(stored))
            return self._partitions

    def settings(self) -> dict[str, str]:
        """What the database says of itself, by name."""
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
                "ones.",
                self.store.place,
                settings.get("model_name"),
            )
        return fits

    def check_fits(self) -> None:
        """Raises MemoryFileRefused if the stored vectors are another model's."""
        if self.has_model and not self.model_fits():
            raise MemoryFileRefused(
                f"{self.store.place} holds vectors of another model ({self.settings().get('model_name')}) or is being "
                "rebuilt; open it with that model, or call rebuild() first. It can be searched by words meanwhile."
            )

    def compute(self, texts: list[str]) -> list[Computed]:
        """Vectors and words of texts.

        Raises MemoryFileRefused if the stored vectors are another model's.
        """
        self.check_fits()
        if not self.has_model:
            return [Computed.of_words(text) for text in texts]
        words = [count_words(text).tobytes() for text in texts]
        readings = self.reader.read(texts)
        return [Computed.of_reading(reading, entries) for reading, entries in zip(readings, words, strict=True)]

    def claim(self, transaction: Transaction) -> None:
        """Vectors of this model are written: from now on the memory is this model's.

        Raises MemoryFileRefused if it is another model's, or somebody is rebuilding it.
        """
        if transaction.rows("SELECT 1 FROM settings WHERE name = 'rebuilding'"):
            raise MemoryFileRefused(f"{self.store.place} is being rebuilt; try again when that is done.")
        rows = transaction.rows("SELECT value FROM settings WHERE name = 'model'")
        if not rows:
            for name, value in self.model_settings().items():
                transaction.run("INSERT INTO settings (name, value) VALUES (?, ?)", name, value)
            with self.lock:
                if self._partitions is not None and self._partitions.dimension != self.reader.dimension:
                    self._partitions = None
        elif rows[0][0] != self.reader.fingerprint:
            raise MemoryFileRefused(f"{self.store.place} was given to another model meanwhile; nothing was added.")

    def model_settings(self) -> dict[str, str]:
        """What the settings say of the model; empty without one."""
        if not self.has_model:
            return {}
        return {
            "model": self.reader.fingerprint,
            "model_name": self.reader.name,
            "dimension": str(self.reader.dimension),
        }

    def kept_conversation(self, scope: Scope) -> KeptState | None:
        """The state of a conversation that this process has read on lately."""
        with self.lock:
            if scope in self._conversations:
                self._conversations.move_to_end(scope)
            return self._conversations.get(scope)

    def keep_conversation(self, scope: Scope, kept: KeptState) -> None:
        """Keep the state of a conversation, which nobody may read on from then on; those used least lately go."""
        with self.lock:
            self._conversations[scope] = kept
            self._conversations.move_to_end(scope)
            while len(self._conversations) > _STATES:
                self._conversations.popitem(last=False)

    def clear(self) -> None:
        """Let go of everything that is kept in memory, because something was forgotten."""
        with self.lock:
            self._conversations.clear()
            if self._partitions is not None:
                self._partitions.clear()
            if self._reader is not None:
                self._reader.forget_queries()


def open_store(place: str | os.PathLike[str]) -> Store:
    """The store that a place names: "postgresql://..." or a file of SQLite."""
    if isinstance(place, str) and place.startswith(("postgresql://", "postgres://")):
        return PostgresStore(place)
    return SQLiteStore(place)
