"""What a server is told when it starts."""

import os
from dataclasses import dataclass, field
from pathlib import Path

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LONGEST_KEY_FILE = 1 << 20


@dataclass(frozen=True)
class Settings:
    """Options of one server; the same in each of its processes.

    Attributes:
        model: folder or Hub id.
        names: names under which clients may ask for the model; the first is the one that answers name.
        api_keys: who has one of these may use the server; without any, everybody who reaches it may.
        device: as torch names it; None chooses.
        threads: threads of one process's model; None leaves torch's choice.
        trust_remote_code: run code that comes with the model.
        request_tokens: tokens of one request.
        waiting_tokens: tokens that may wait to be read.
        inputs: texts of one request.
        body_bytes: bytes of one request's body.
        waiting_bytes: bytes of all bodies that are being received or answered.
        body_seconds: seconds for a body to arrive; a large one that keeps coming has more.
        sessions: sessions that may exist at once.
        session_seconds: seconds without use after which a session is deleted.
        session_folder: where sessions are kept; all processes of a server share it.
        memory: a memory's file or "postgresql://...", that is served too; None: no memory.
        memory_open: let this machine use the memory without a key, as long as none was made for it.
        memory_strengths: keep strengths of its memories, and let them count.
        grace_seconds: seconds after a signal to stop in which open connections are still answered.
    """

    model: str
    names: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    device: str | None = None
    threads: int | None = None
    trust_remote_code: bool = False
    request_tokens: int = 4_000_000
    waiting_tokens: int = 8_000_000
    inputs: int = 2048
    body_bytes: int = 64 << 20
    waiting_bytes: int = 256 << 20
    body_seconds: float = 30.0
    sessions: int = 256
    session_seconds: float = 3600.0
    session_folder: str | None = None
    memory: str | None = field(default=None, repr=False)
    memory_open: bool = False
    memory_strengths: bool = False
    grace_seconds: float = 0.5

    @property
    def name(self) -> str:
        return self.names[0] if self.names else Path(self.model).name or self.model

    def knows(self, name: str) -> bool:
        """Whether a client that asks for this model means ours; Ollama's clients add a tag."""
        return name.removesuffix(":latest") in (self.name, self.model, *self.names)


def read_keys(file: Path | None) -> tuple[str, ...]:
    """The API keys of a file, one a line, and of LAM_API_KEYS, separated by commas.

    Raises:
        OSError: if the file cannot be read.
        ValueError: for a file without a key, and for keys that no client could send.
    """
    keys = [key.strip() for key in os.environ.get("LAM_API_KEYS", "").split(",") if key.strip()]
    if file is not None:
        if file.stat().st_size > LONGEST_KEY_FILE:
            raise ValueError(f"{file} is no file of API keys: it has {file.stat().st_size:,} bytes.")
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise ValueError(f"{file} holds no API key; write one on each line.")
        keys += found
    for key in keys:
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(
                "An API key holds a space or a character that no header can carry; use letters and digits."
            )
    return tuple(dict.fromkeys(keys))


def check_host(host: str, keys: tuple[str, ...]) -> None:
    """Raises ValueError if the server would be open to others without a key."""
    if not keys and host not in LOOPBACK:
        raise ValueError(
            f"--host {host} can be reached by others, and there is no API key: give --api-key-file or LAM_API_KEYS, or "
            "leave --host at 127.0.0.1."
        )
