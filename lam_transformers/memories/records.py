"""What a memory service takes and gives: scopes, memories, results, and the checks of what users hand in."""

import datetime
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

# What a time may be given as.
Time = str | float | datetime.datetime

LONGEST_TEXT = 1_000_000  # characters of one memory or turn; a longer text is a document
LONGEST_DOCUMENT = 200_000_000  # characters
LONGEST_ID = 1_000  # characters of a user_id, agent_id, run_id or key
KINDS = ("memory", "turn", "document", "paragraph")


@dataclass(frozen=True)
class Scope:
    """Whose memories are meant. A memory without a user and without an agent is shared.

    Attributes:
        user_id, agent_id, run_id: names of a user, an assistant and a conversation; "" where there is none.
    """

    user_id: str = ""
    agent_id: str = ""
    run_id: str = ""

    @classmethod
    def of(cls, user_id: str | None = None, agent_id: str | None = None, run_id: str | None = None) -> "Scope":
        """Checked names. Raises ValueError for what is no string, empty, too long or cannot be stored."""
        given = {"user_id": user_id, "agent_id": agent_id, "run_id": run_id}
        return cls(**{name: "" if value is None else check_name(name, value) for name, value in given.items()})

    @property
    def values(self) -> tuple[str, str, str]:
        """The three names, as the tables have them."""
        return self.user_id, self.agent_id, self.run_id

    def sees(self, other: "Scope") -> bool:
        """Whether a memory of another scope may be seen from this one, as a search sees it."""
        if other.user_id not in ("", self.user_id):
            return False
        if (self.agent_id or not other.user_id) and other.agent_id not in ("", self.agent_id):
            return False
        return not self.run_id or other.run_id in ("", self.run_id)

    def owns(self, other: "Scope") -> bool:
        """Whether a memory of another scope may be changed and forgotten from this one."""
        if other.user_id != self.user_id:
            return False
        if (self.agent_id or not self.user_id) and other.agent_id != self.agent_id:
            return False
        return not self.run_id or other.run_id == self.run_id


@dataclass(frozen=True)
class MemoryRecord:
    """One memory, in one of its versions.

    Attributes:
        id: stays the same when the memory is updated.
        text: as it was said.
        kind: "memory", "turn" (of a conversation), "document" or "paragraph".
        version: 1, 2, ...
        user_id, agent_id, run_id: its scope, None where there is none.
        role: who said a turn.
        time: since when this version holds (UTC): its `timestamp`, or when it was added.
        superseded: since when a newer version holds instead, or None.
        key: the name of the fact it states, or None.
        position: number of the turn in its conversation, or of the paragraph in its document, from 0; None otherwise.
        document_id, start, end: the document of a paragraph and its characters there.
        metadata: the user's own.
    """

    id: str
    text: str
    kind: str
    version: int
    user_id: str | None
    agent_id: str | None
    run_id: str | None
    role: str | None
    time: datetime.datetime
    superseded: datetime.datetime | None
    key: str | None = None
    position: int | None = None
    document_id: str | None = None
    start: int | None = None
    end: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: times in ISO 8601."""
        values = dict(vars(self))
        values["time"] = self.time.isoformat()
        values["superseded"] = None if self.superseded is None else self.superseded.isoformat()
        return values


@dataclass(frozen=True)
class ConversationRecord:
    """A conversation, by its scope.

    Attributes:
        user_id, agent_id, run_id: its scope, None where there is none.
        turns: number of turns that hold.
        first_time, last_time: when the first and the last of its turns were said (UTC), also where they were corrected.
    """

    user_id: str | None
    agent_id: str | None
    run_id: str | None
    turns: int
    first_time: datetime.datetime
    last_time: datetime.datetime

    def as_dict(self) -> dict[str, Any]:
        """For JSON: times in ISO 8601."""
        times = {name: getattr(self, name).isoformat() for name in ("first_time", "last_time")}
        return vars(self) | times


@dataclass(frozen=True)
class SearchResult:
    """A memory that answers a query.

    Attributes:
        memory: the memory.
        score: what results are ordered by, about 0 to 1.
        passage: (start, end), the characters of `memory.text` that fit best; all of it for a short one.
        variants: near-duplicates of it, which are not shown as results of their own.
        parts: with `explain`, every part of the score by name.
    """

    memory: MemoryRecord
    score: float
    passage: tuple[int, int]
    variants: tuple[MemoryRecord, ...] = ()
    parts: dict[str, float] | None = None

    @property
    def text(self) -> str:
        """Of the memory."""
        return self.memory.text

    @property
    def id(self) -> str:
        """Of the memory."""
        return self.memory.id

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = self.memory.as_dict() | {"score": self.score, "passage": list(self.passage)}
        values["variants"] = [variant.as_dict() for variant in self.variants]
        return values if self.parts is None else values | {"parts": self.parts}


def check_name(what: str, value: Any) -> str:
    """A user_id, agent_id, run_id, key or role. Raises ValueError, naming it."""
    if not isinstance(value, str):
        raise ValueError(f"{what} must be a string, got {type(value).__name__}.")
    if not value.strip():
        raise ValueError(f"{what} is empty; leave it out where there is none.")
    if len(value) > LONGEST_ID:
        raise ValueError(f"{what} has {len(value):,} characters, at most {LONGEST_ID:,} can be stored; shorten it.")
    return check_storable(what, value)


def check_text(what: str, value: Any, most: int = LONGEST_TEXT) -> str:
    """A text to be remembered or searched for. Raises ValueError, naming it and the mend."""
    if not isinstance(value, str):
        raise ValueError(f"{what} must be a string, got {type(value).__name__}.")
    if not value.strip():
        raise ValueError(f"{what} is empty; there is nothing to remember or to look for.")
    if len(value) > most:
        mend = "use add_document" if most == LONGEST_TEXT else "split it"
        raise ValueError(f"{what} has {len(value):,} characters, more than {most:,}; {mend}.")
    return check_storable(what, value)


def check_storable(what: str, value: str) -> str:
    """Raises ValueError for text that no database or no UTF-8 file can hold."""
    if (place := value.find("\0")) >= 0:
        raise ValueError(f"{what} holds a NUL character (at {place}), which cannot be stored; remove it.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} holds a lone surrogate (at {error.start}), which is no text; decode it with errors='replace'."
        ) from None
    return value


def check_time(what: str, value: Any) -> float:
    """Seconds since 1970 (UTC) of a datetime with a zone, an ISO 8601 string with a zone, or a number of seconds.

    Raises ValueError, naming it, for anything else.
    """
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{what} must be a time in ISO 8601 with a zone, got {value[:60]!r}.") from None
    if isinstance(value, datetime.datetime):
        if value.tzinfo is None or value.utcoffset() is None:
            raise ValueError(f"{what} {value.isoformat()} has no zone; add one, such as +00:00 or Z.")
        value = value.timestamp()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise ValueError(f"{what} must be a time with a zone or seconds since 1970, got {value!r}.")
    if not -62_135_596_800 <= value <= 253_402_300_799:
        raise ValueError(f"{what} {value!r:.30} is no second of the years 1 to 9999; were these milliseconds?")
    return round(float(value), 6)


def as_datetime(seconds: float) -> datetime.datetime:
    """UTC."""
    return datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(seconds=seconds)


def check_metadata(what: str, value: Any) -> str:
    """Metadata as JSON. Raises ValueError unless it is a dictionary that JSON can hold."""
    if value is None:
        return "{}"
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be a dictionary, got {type(value).__name__}.")
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} cannot be written as JSON ({error}).") from error
    return check_storable(what, text)


@dataclass(frozen=True)
class Message:
    """A turn that was handed in, checked. `time` is None where no timestamp was given."""

    role: str
    text: str
    time: float | None
    metadata: str
    source_id: str | None


def owner_of(user_id: str | None) -> Scope | None:
    """Whose a memory has to be: None for anybody's, "" for shared ones only. Raises ValueError for what is no name."""
    if user_id is None:
        return None
    return Scope() if user_id == "" else Scope.of(user_id)


def check_kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    """Raises ValueError for kinds that there are not."""
    chosen = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    wrong = [kind for kind in chosen if kind not in KINDS]
    if wrong or not chosen:
        raise ValueError(f"kinds are {', '.join(KINDS)}, got {', '.join(map(repr, wrong)) or 'none'}.")
    return chosen


def check_messages(messages: Any) -> list[Message]:
    """Messages as {"role", "content", "timestamp"?, "id"?, "metadata"?}. Raises ValueError, naming the message."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError("messages must be a list of one or more {'role': ..., 'content': ...}.")
    checked: list[Message] = []
    for number, message in enumerate(messages):
        name = f"messages[{number}]"
        if not isinstance(message, dict):
            raise ValueError(f"{name} must be a dictionary with role and content, got {type(message).__name__}.")
        for needed in ("role", "content"):
            if needed not in message:
                raise ValueError(f"{name} has no {needed!r}; it needs role and content.")
        time = message.get("timestamp")
        time = None if time is None else check_time(f"{name}['timestamp']", time)
        source = message.get("id")
        checked.append(
            Message(
                check_name(f"{name}['role']", message["role"]),
                check_text(f"{name}['content']", message["content"]),
                time,
                check_metadata(f"{name}['metadata']", message.get("metadata")),
                None if source is None else check_name(f"{name}['id']", str(source)),
            )
        )
    last = None
    for number, message in enumerate(checked):
        if message.time is not None:
            if last is not None and message.time < last:
                raise ValueError(
                    f"messages[{number}]['timestamp'] is earlier than that of a message before it; put them in order."
                )
            last = message.time
    return checked
