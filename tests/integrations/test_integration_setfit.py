"""SetFit: LAM as the body of a classifier from a few texts."""

from ..helpers import require

require("setfit", "setfit")


def test_documented_code(run_documented):
    assert "['music', 'food']" in run_documented("SetFit")
