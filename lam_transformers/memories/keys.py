"""Keys by which others may use a part of a memory: each is bound to a scope, and only its hash is stored."""

import datetime
import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .records import Scope, as_datetime, check_name
from .store import Store

PREFIX = "lam-"  # by which a person, or a search for secrets, knows such a key
_BYTES = 32  # of randomness: a plain hash of so much cannot be guessed, which is not so for a password
_List = list  # `list` is a method of Keys


@dataclass(frozen=True)
class Key:
    """What is known of a key. The key itself is shown when it is made, and never again.

    Attributes:
        name: what it was called.
        scope: what it sees and changes: a user, an assistant, a conversation, or what is shared.
        created: when it was made (UTC).
        revoked: since when it opens nothing any more, or None.
    """

    name: str
    scope: Scope
    created: datetime.datetime
    revoked: datetime.datetime | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: times in ISO 8601."""
        names = ("user_id", "agent_id", "run_id")
        return {
            "name": self.name,
            **{name: value or None for name, value in zip(names, self.scope.values, strict=True)},
            "created": self.created.isoformat(),
            "revoked": None if self.revoked is None else self.revoked.isoformat(),
        }


class Keys:
    """The keys of a memory. A revoked one stays in the list; its name may be given again.

    Args:
        store: the database, such as `memory.store`.
        now: the clock, seconds since 1970.
    """

    def __init__(self, store: Store, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._now = now

    def add(self, name: str, scope: Scope) -> str:
        """Make a key for a scope; one without any name is for what is shared.

        Returns:
            the key, which is not stored: only its SHA-256 is.

        Raises:
            ValueError: for what is no name, or that of a key in use.
        """
        check_name("The name of the key", name)
        key = PREFIX + secrets.token_urlsafe(_BYTES)
        with self._store.write() as transaction:
            if transaction.rows("SELECT 1 FROM api_keys WHERE name = ? AND revoked IS NULL", name):
                raise ValueError(f"There is a key named {name!r}; revoke it first, or choose another name.")
            transaction.run(
                "INSERT INTO api_keys (digest, name, user_id, agent_id, run_id, created) VALUES (?, ?, ?, ?, ?, ?)",
                *(_digest(key), name, *scope.values, self._now()),
            )
        return key

    def list(self) -> _List[Key]:
        """All keys, revoked ones too, the oldest first."""
        with self._store.read() as transaction:
            rows = transaction.rows(
                "SELECT name, user_id, agent_id, run_id, created, revoked FROM api_keys ORDER BY created, name"
            )
        return [
            Key(name, Scope(*scope), as_datetime(created), None if revoked is None else as_datetime(revoked))
            for name, *scope, created, revoked in rows
        ]

    def revoke(self, name: str) -> None:
        """From now on the key of this name opens nothing. Raises ValueError if there is none in use."""
        with self._store.write() as transaction:
            count = transaction.run(
                "UPDATE api_keys SET revoked = ? WHERE name = ? AND revoked IS NULL", self._now(), name
            )
        if not count:
            raise ValueError(f"There is no key named {name!r} in use.")

    def scope_of(self, key: str) -> Scope | None:
        """What a key may see and change; None for one that is unknown or revoked."""
        with self._store.read() as transaction:
            rows = transaction.rows(
                "SELECT user_id, agent_id, run_id FROM api_keys WHERE digest = ? AND revoked IS NULL", _digest(key)
            )
        return Scope(*rows[0]) if rows else None

    def exist(self) -> bool:
        """Whether a key was ever made, revoked ones included."""
        with self._store.read() as transaction:
            return bool(transaction.rows("SELECT 1 FROM api_keys LIMIT 1"))


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
