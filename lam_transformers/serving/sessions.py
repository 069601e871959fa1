"""Sessions over HTTP: a text that is still being written, kept in a file between two requests.

A session is a file, not an object in memory: every process of the server finds it, and the death of one loses nothing.
Each key has a folder of its own, so that nobody can even name the session of another key.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..encoding import LAMSession
from .errors import ServeError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ID = re.compile(r"[A-Za-z0-9_-]{22}")
_ENDING = ".safetensors"
SAVED = "saved"
LIVE = "live"


class SessionStore:
    """The sessions of a server.

    Args:
        folder: where the files are; None makes a folder that only this user can read.
        most: live sessions that may exist at once, of all keys; as many may be saved.
        seconds: without use after which a live session is deleted.
    """

    def __init__(self, folder: str | None, most: int, seconds: float):
        self.folder = Path(folder or tempfile.mkdtemp(prefix="lam-sessions-"))
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.most = most
        self.seconds = seconds

    def create(self, owner: str, model, saved: str | None = None) -> tuple[str, LAMSession]:
        """A new session, empty or a copy of a saved one; its id cannot be guessed.

        Raises ServeError if there are too many sessions or there is no saved one of that name.
        """
        with self._locked(self.folder / "create.lock"):
            self.forget_old()
            if self._count(LIVE) >= self.most:
                raise ServeError(
                    429,
                    "overloaded",
                    f"There are {self.most} sessions, which is the limit of this server; delete one with "
                    f"DELETE /sessions/ID, or wait until one has not been used for {self.seconds:.0f} seconds.",
                    retry_after=60,
                )
            session = LAMSession(model) if saved is None else self._load(self._saved(owner, saved), model, saved)
            name = secrets.token_urlsafe(16)
            session.save(self._live(owner, name))
        return name, session

    @contextlib.contextmanager
    def use(self, owner: str, name: str, model, write: bool = False) -> Iterator[LAMSession]:
        """A session of this owner; nobody else changes it meanwhile. With `write` it is kept as it is at the end.

        Raises ServeError if the owner has no such session.
        """
        path = self._live(owner, self._checked_id(name))
        if not path.exists():
            raise self._unknown()
        with self._locked(path.with_suffix(".lock")):
            session = self._load(path, model, "this id")
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)
            yield session
            if write:
                session.save(path)

    def save(self, owner: str, name: str, saved: str, model) -> None:
        """Keep a session under a name of the owner's choice, beyond the life of the session and of the server.

        Raises ServeError for a name that could be no file's, and if too many sessions are saved.
        """
        path = self._saved(owner, saved)
        if not path.exists() and self._count(SAVED) >= self.most:
            raise ServeError(429, "overloaded", f"{self.most} sessions are saved, which is the limit; delete one.")
        with self.use(owner, name, model) as session:
            session.save(path)

    def delete(self, owner: str, name: str) -> None:
        """Raises ServeError if the owner has no such session."""
        path = self._live(owner, self._checked_id(name))
        if not path.exists():
            raise self._unknown()
        with self._locked(path.with_suffix(".lock")):
            path.unlink(missing_ok=True)
        path.with_suffix(".lock").unlink(missing_ok=True)

    def delete_saved(self, owner: str, saved: str) -> None:
        """Raises ServeError if the owner saved no session under that name."""
        try:
            self._saved(owner, saved).unlink()
        except FileNotFoundError:
            raise ServeError(404, "not_found", "There is no saved session of that name.", "name") from None

    def forget_old(self) -> None:
        """Delete the live sessions that nobody has used for a while, and locks whose session is gone."""
        oldest = time.time() - self.seconds
        for path in self.folder.glob(f"{LIVE}/*/*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest and (path.suffix == _ENDING or not path.with_suffix(_ENDING).exists()):
                    path.unlink()

    def _count(self, kind: str) -> int:
        return sum(1 for _ in self.folder.glob(f"{kind}/*/*{_ENDING}"))

    def _live(self, owner: str, name: str) -> Path:
        return self._folder_of(LIVE, owner) / (name + _ENDING)

    def _saved(self, owner: str, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ServeError(
                422, "validation", "A name has 1 to 64 letters, digits, - and _, a letter or digit first.", "name"
            )
        return self._folder_of(SAVED, owner) / (name + _ENDING)

    def _folder_of(self, kind: str, owner: str) -> Path:
        folder = self.folder / kind / hashlib.sha256(owner.encode()).hexdigest()[:32]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def _checked_id(self, name: str) -> str:
        if not _ID.fullmatch(name):
            raise self._unknown()
        return name

    def _unknown(self) -> ServeError:
        return ServeError(
            404,
            "not_found",
            f"There is no such session; it was deleted, or not used for {self.seconds:.0f} seconds. Create one with "
            "POST /sessions.",
            "id",
        )

    @staticmethod
    def _load(path: Path, model: Any, what: str) -> LAMSession:
        try:
            return LAMSession.load(path, model)
        except FileNotFoundError:
            raise ServeError(404, "not_found", f"There is no session of {what}.") from None
        except ValueError:
            raise ServeError(
                409, "conflict", f"The session of {what} was written by another model or is damaged; start a new one."
            ) from None

    @staticmethod
    @contextlib.contextmanager
    def _locked(path: Path) -> Iterator[None]:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(path, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
