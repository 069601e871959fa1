"""Files that earlier versions of LAM wrote (tests/fixtures/README.md) are read as they were meant."""

import json

import numpy as np
import pytest
import torch
from handbook import ROOT

from lam_transformers import LAMEncoder, LAMSession, LAMState

FIXTURES = ROOT / "tests/fixtures"
# The folder and the chunk of two-way reading of its model.
VERSIONS = {"one_way": None, "two_way": 16}


@pytest.fixture(scope="module", params=VERSIONS)
def written(request):
    """A folder of an earlier version: its name, the model in it, and what the version itself made of it."""
    folder = FIXTURES / request.param
    return request.param, LAMEncoder(folder), json.loads((folder / "expected.json").read_text(encoding="utf-8"))


def test_a_folder_gives_the_embeddings_that_it_gave(written):
    name, encoder, expected = written
    assert encoder.model[0].model.config.two_way_chunk == VERSIONS[name]
    assert ("two_way_chunk" in (FIXTURES / name / "config.json").read_text(encoding="utf-8")) == (name == "two_way")
    got = encoder.encode(expected["texts"])
    assert np.abs(got - np.array(expected["embeddings"])).max() < 1e-6


def test_a_saved_state_goes_on_as_it_did(written):
    name, encoder, expected = written
    lam = encoder.model[0].model
    state = LAMState.load(FIXTURES / name / "state.safetensors")
    assert state.seen.tolist() == [expected["read"]] * 2
    with torch.no_grad():
        got = lam(input_ids=torch.tensor(expected["ids"])[:, expected["read"] :], cache=state).last_hidden_state
    assert (got - torch.tensor(expected["states"])).abs().max() < 1e-5
    # What the state was made from gives the same state now.
    again = lam.new_state(2)
    with torch.no_grad():
        lam(input_ids=torch.tensor(expected["ids"])[:, : expected["read"]], cache=again)
    saved = LAMState.load(FIXTURES / name / "state.safetensors")
    assert saved.fingerprint == again.fingerprint
    for got, want in zip([*again.memory, *again.conv], [*saved.memory, *saved.conv], strict=True):
        assert (got - want).abs().max() < 1e-5


def test_a_saved_session_goes_on_as_it_did(written):
    name, encoder, expected = written
    session = LAMSession.load(FIXTURES / name / "session.safetensors", encoder)
    assert (session.characters, session.tokens) == (expected["characters"], expected["tokens"])
    text = expected["texts"][-1]
    assert np.abs(session.embedding() - encoder.encode(text[: expected["cut"]])).max() < 1e-6
    session.append(text[expected["cut"] :])
    assert np.abs(session.embedding() - np.array(expected["embeddings"][-1])).max() < 1e-6
