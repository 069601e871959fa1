"""What a report is made of: sections of texts, tables, points and figures, and how numbers are written in them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..io.templates import render_paragraph


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Table:
    """A table. Every row has as many cells as the header."""

    kind: ClassVar[str] = "table"
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Points:
    """A list of sentences."""

    kind: ClassVar[str] = "points"
    points: list[str]


@dataclass(frozen=True)
class Figure:
    """A figure of the part, by its name; it is left out where the numbers were not enough to draw it."""

    kind: ClassVar[str] = "figure"
    name: str
    caption: str


Block = Text | Table | Points | Figure


@dataclass
class Section:
    """A chapter of the report."""

    title: str
    blocks: list[Block] = field(default_factory=list)


def prose(template: str, **values: Any) -> Text:
    """A paragraph from a jinja2 template, which may be written over several lines."""
    return Text(render_paragraph(template, **values))


def with_interval(value: float, interval: Sequence[float], digits: int = 3) -> str:
    """A number with its 95 % interval: "0.891 [0.880, 0.901]"."""
    return f"{value:.{digits}f} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def p_value(p: float) -> str:
    """A p value with two digits; one too small for a float is written as a bound."""
    return "< 1e-300" if p == 0 else f"{p:.2g}"
