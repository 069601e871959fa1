"""Text on its way to a terminal."""

from lam_transformers.io.terminal import one_line, printable

NASTY = "\x1b]0;owned\x07\x1b[2J\u202eno\u2028yes\r\nloads: yes"


def test_control_characters_are_written_out():
    assert printable("caf\u00e9 [b] \U0001f642") == "caf\u00e9 [b] \U0001f642"
    assert printable(NASTY) == r"\x1b]0;owned\x07\x1b[2J\u202eno\u2028yes\x0d\x0aloads: yes"
    assert printable("a\tb\n\x00", keep="\t\n") == "a\tb\n\\x00"
    assert one_line("a\n  b\x1b\n") == "a b\\x1b"
    assert one_line("x" * 50, 10) == "x" * 10 + " ..."
