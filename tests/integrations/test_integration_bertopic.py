"""BERTopic: topics of LAM's embeddings."""

from ..helpers import require

require("bertopic", "bertopic")


def test_documented_code(run_documented):
    printed = run_documented("BERTopic")
    assert "plays" in printed
    assert "cooks" in printed
