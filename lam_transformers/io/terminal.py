"""Text on its way to a terminal: what comes from files must neither command the terminal nor pass for our own lines."""

import unicodedata

# Control characters, line and paragraph separators, and what turns the direction of text around.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printable(text: object, keep: str = "") -> str:
    r"""A text with every control character written out, as \x1b or \u202e.

    Args:
        text: anything that can be made a string.
        keep: control characters that stay as they are.

    Returns:
        What a terminal shows and does not obey.
    """
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(x if x in keep or unicodedata.category(x) not in _HIDDEN else _escaped(x) for x in text)


def one_line(text: object, longest: int = 2000) -> str:
    """A text as one printable line.

    Args:
        text: anything that can be made a string.
        longest: number of characters beyond which the rest is left out.

    Returns:
        The line; three dots at its end say that something was left out.
    """
    line = printable(" ".join(str(text).split()))
    return line if len(line) <= longest else line[:longest] + " ..."


def _escaped(x: str) -> str:
    code = ord(x)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
