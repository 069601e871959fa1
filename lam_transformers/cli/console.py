"""What the commands show: lines, errors in one line, bars.

Names of files and words from files are shown as they are: nothing in them is markup, a link or an emoji, and nothing in
them can command the terminal.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import typer
from huggingface_hub.errors import StrictDataclassError
from rich import progress as bars
from rich.console import Console
from rich.text import Text

from ..io.progress import Progress
from ..io.terminal import one_line, printable

console = Console(stderr=True, markup=False, emoji=False, highlight=False)


def say(line: object, before: str = "", style: str = "") -> None:
    """Write one line to the terminal's error stream, after a coloured word."""
    console.print(Text.assemble((before, style), one_line(line)), soft_wrap=True)


def echo(text: str) -> None:
    """Write lines to the standard output."""
    typer.echo(printable(text, keep="\n\t"))


def working(what: object) -> AbstractContextManager[object]:
    """A sign of life while something runs."""
    return console.status(Text(one_line(what)))


@contextmanager
def clear_errors() -> Iterator[None]:
    """Say what a user can mend in one line and end with status 1; anything else keeps its traceback."""
    try:
        yield
    except (OSError, ValueError, FloatingPointError, ImportError, MemoryError, StrictDataclassError) as error:
        say(str(error) or type(error).__name__, "lam: ", "red")
        raise typer.Exit(1) from error


class _Bar:
    """A `Task` that is a bar on the terminal."""

    def __init__(self, drawn: bars.Progress, what: str, total: int | None):
        self._drawn = drawn
        self._id = drawn.add_task(one_line(what), total=total)

    def advance(self, count: int = 1, note: str | None = None) -> None:
        self._drawn.update(self._id, advance=count, description=None if note is None else one_line(note))


class _Bars:
    """A `Progress` of bars, and of lines above them."""

    def __init__(self, drawn: bars.Progress):
        self._drawn = drawn

    def task(self, what: str, total: int | None = None) -> _Bar:
        return _Bar(self._drawn, what, total)

    def say(self, line: str) -> None:
        say(line)


@contextmanager
def show_progress(count: bars.ProgressColumn | None = None) -> Iterator[Progress]:
    """Draw a bar for each task that is begun in the block; those of transformers, which would cut ours, are off.

    Args:
        count: the column that says how much is done; by default the share in percent.

    Yields:
        What a computation reports to.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        count or bars.TaskProgressColumn(),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console) as drawn:
        yield _Bars(drawn)
