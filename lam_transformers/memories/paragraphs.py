"""Where the paragraphs of a document begin and end."""

import itertools
import re
from collections.abc import Iterator

LONGEST_PARAGRAPH = 1_200  # characters; a longer one is cut at the ends of its sentences

_PARAGRAPH_END = re.compile(r"\n[ \t\r]*\n")
_SENTENCE_END = re.compile("[.!?\u2026]+[\"'\u201d\u2019)\\]]*(?=\\s)|[\u3002\uff01\uff1f]+|\n")


def paragraphs(text: str) -> list[tuple[int, int]]:
    """Spans [start, end) of a text's paragraphs: blank lines part them, a heading goes with what follows it.

    A paragraph of more than LONGEST_PARAGRAPH characters is cut at the ends of its sentences.
    """
    marks = [0, *(match.end() for match in _PARAGRAPH_END.finditer(text)), len(text)]
    spans: list[tuple[int, int]] = []
    heading: int | None = None
    for start, end in itertools.pairwise(marks):
        piece = text[start:end]
        start += len(piece) - len(piece.lstrip())
        end -= len(piece) - len(piece.rstrip())
        if start >= end:
            continue
        if text[start] == "#" and "\n" not in text[start:end] and end - start < 200:
            heading = start if heading is None else heading
            continue
        spans += _cut(text, start if heading is None else heading, end)
        heading = None
    return spans if heading is None else [*spans, *_cut(text, heading, len(text.rstrip()))]


def _cut(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    while end - start > LONGEST_PARAGRAPH:
        cuts = [match.end() for match in _SENTENCE_END.finditer(text, start + 1, start + LONGEST_PARAGRAPH)]
        cut = cuts[-1] if cuts else text.rfind(" ", start + 1, start + LONGEST_PARAGRAPH)
        cut = cut if cut > start else start + LONGEST_PARAGRAPH
        stop = start + len(text[start:cut].rstrip())
        if stop > start:
            yield start, stop
        start = cut + len(text[cut:end]) - len(text[cut:end].lstrip())
    if start < end:
        yield start, end
