"""A server in a thread of the test's process, with a tiny LAM, on the loopback address."""

import dataclasses
import uuid

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from lam_transformers import LAMTransformer
from lam_transformers.io.loading import load_sentence_transformer
from lam_transformers.memories import Keys, Memory, Scope
from lam_transformers.serving.settings import Settings

from .serving_texts import KEY


@pytest.fixture(autouse=True)
def loopback_is_no_network(monkeypatch):
    """huggingface_hub's client asks nobody while it is offline, not even a server on this machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture(scope="session")
def serving_folder(tiny_model, tokenizer, tmp_path_factory):
    """A LAM folder as a SentenceTransformer saves it."""
    folder = tmp_path_factory.mktemp("serving") / "tiny-lam"
    model = SentenceTransformer(
        modules=[LAMTransformer(tiny_model, tokenizer), Normalize()],
        prompts={"query": "the old house ", "document": ""},
    )
    model.save(str(folder))
    return folder


@pytest.fixture(scope="session")
def serving_model(serving_folder):
    """What every answer is compared with."""
    return load_sentence_transformer(serving_folder, device="cpu")


@pytest.fixture(scope="session")
def padded_folder(tiny_bert, tmp_path_factory):
    """Another model than a LAM, which reads 48 tokens of a text."""
    folder = tmp_path_factory.mktemp("serving") / "tiny-bert"
    transformer = Transformer(str(tiny_bert), max_seq_length=48)
    model = SentenceTransformer(modules=[transformer, Pooling(transformer.get_embedding_dimension()), Normalize()])
    model.save(str(folder))
    return folder


@pytest.fixture(scope="session")
def start_server(serving_folder, tmp_path_factory):
    """Starts servers with the tiny LAM; options change the settings. All are stopped at the end."""
    pytest.importorskip("fastapi", reason="the serve extra is not installed")
    from .serving_server import Running

    running = []

    def start(may_listen=None, **options):
        torch.set_num_threads(1)
        folder = str(tmp_path_factory.mktemp("sessions"))
        settings = Settings(model=str(serving_folder), session_folder=folder, grace_seconds=0.05)
        running.append(Running(dataclasses.replace(settings, **options), may_listen))
        return running[-1]

    yield start
    for server in running:
        server.stop()


@pytest.fixture(scope="session")
def server(start_server):
    """A server without a key and with generous limits."""
    return start_server()


@pytest.fixture(scope="session")
def keyed_server(start_server):
    """A server with two keys and small limits."""
    return start_server(
        api_keys=(KEY, "another-key"), request_tokens=3000, inputs=20, body_bytes=200_000, body_seconds=1.0, sessions=5
    )


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture
def keyed(keyed_server):
    with keyed_server.client(headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


@pytest.fixture(scope="session")
def memory_place(tmp_path_factory):
    """Where the memory of `memory_server` is."""
    return tmp_path_factory.mktemp("memory") / "memory.db"


@pytest.fixture(scope="session")
def memory_server(start_server, memory_place):
    """A server with a memory, whose requests need a key, and a limit of five messages at once."""
    return start_server(memory=str(memory_place), memory_strengths=True, inputs=5, body_bytes=32 << 20)


@pytest.fixture
def key_for(memory_server, memory_place):
    """Makes keys: a function of a scope's names."""
    with Memory(memory_place, model=None) as memory:
        yield lambda **names: Keys(memory.store).add(uuid.uuid4().hex, Scope.of(**names))


@pytest.fixture
def client_for(memory_server, key_for):
    """Makes clients with a key of their own: a function of a scope's names."""
    made = []

    def make(**names):
        made.append(memory_server.client(headers={"X-API-Key": key_for(**names)}))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def user():
    """A user whom no other test knows."""
    return f"user-{uuid.uuid4().hex}"


@pytest.fixture
def ada(client_for, user):
    """A client with a key of this user."""
    return client_for(user_id=user)


@pytest.fixture
def nothing_shared_is_left(client_for):
    """What tests write without a name would be found by all others."""
    yield
    shared = client_for()
    for item in shared.get("/memories", params={"limit": 1000}).json()["results"]:
        assert shared.delete(f"/memories/{item['id']}").status_code == 200
