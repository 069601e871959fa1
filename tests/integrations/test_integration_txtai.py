"""txtai: an index of texts."""

from ..helpers import require

require("txtai", "txtai")


def test_documented_code(run_documented):
    assert "closed on Mondays" in run_documented("txtai")
