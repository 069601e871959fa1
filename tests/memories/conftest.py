"""Memories in fresh files, with the tiny model, without one, and with a clock that the test sets."""

import socket

import pytest

from lam_transformers.encoding import LAMEncoder
from lam_transformers.memories import Memory


@pytest.fixture(scope="session")
def tiny_encoder_folder(make_model, tokenizer, tmp_path_factory):
    """The folder of a tiny model that reads two ways, as LAM-base-v1 does."""
    folder = tmp_path_factory.mktemp("tiny-memory-model")
    make_model(two_way_chunk=8).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tiny_encoder_folder):
    """A LAMEncoder of the tiny model."""
    return LAMEncoder(tiny_encoder_folder)


class Clock:
    """Seconds since 1970, which pass only when a test says so."""

    def __init__(self):
        self.seconds = 1_800_000_000.0

    def __call__(self) -> float:
        self.seconds += 1e-3
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def place(tmp_path):
    """Where a fresh memory is."""
    return str(tmp_path / "memory.db")


@pytest.fixture
def words_only(place):
    """A memory without a model."""
    with Memory(place, model=None) as memory:
        yield memory


@pytest.fixture
def memory(place, tiny_encoder, clock):
    """A memory with the tiny model."""
    with Memory(place, model=tiny_encoder, now=clock) as memory:
        yield memory


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing but this machine can be reached."""
    connect = socket.socket.connect

    def checked(self, address):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"A memory tried to reach {address}.")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", checked)
