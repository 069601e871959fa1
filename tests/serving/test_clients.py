"""The clients of examples/serving/clients.py, each against a server."""

import sys

import pytest
from handbook import ROOT

from .serving_texts import sentences

sys.path.insert(0, str(ROOT / "examples" / "serving"))
import clients

EXACT = 1e-6


@pytest.mark.parametrize("name", clients.CLIENTS)
def test_a_client(server, serving_model, name):
    module, embed = clients.CLIENTS[name]
    if not clients.is_installed(module):
        pytest.skip(f"{module} is not installed")
    texts = sentences(5)
    got = embed(server.url, texts, "tiny-lam")
    assert got.shape == (5, 64)
    assert abs(got - serving_model.encode(texts)).max() < EXACT
