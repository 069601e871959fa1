"""KeyBERT: LAM ranks the words of a text."""

from ..helpers import require

require("keybert", "keybert")


def test_documented_code(run_documented):
    assert "library" in run_documented("KeyBERT")
