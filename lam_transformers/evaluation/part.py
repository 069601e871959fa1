"""What a part of the evaluation is: the one contract of everything in parts/ and research/.

A part answers one question about a model. All that belongs to it is in one file, which ends with one object of the
class `Part`, and the suite names that object in one line. docs/EVALUATION.md shows how a part is added.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..io.progress import Progress, Silent
from ..io.results import Numbers, Record, Results
from .blocks import Section
from .data import Data, MissingData

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .models import MeasuredModel

S = TypeVar("S")


@dataclass(frozen=True)
class Settings:
    """How much is measured. The defaults are those of a report.

    Attributes:
        quick: a look in a few minutes, not for a report.
        resamples: bootstrap samples of every interval.
        parts: objects of the parts' own settings classes; a part that is not among them has its defaults.
        seed: written into the result files.
    """

    quick: bool = False
    resamples: int = 10_000
    parts: tuple[Any, ...] = ()
    seed: int = 0

    def of(self, kind: type[S]) -> S:
        """The settings of a part, by their class."""
        return next((own for own in self.parts if isinstance(own, kind)), kind())


@dataclass
class Context:
    """What a part is given.

    Attributes:
        model: the LAM under test; its `lam` is the `LAMModel`.
        baselines: models measured beside it.
        data: the data sets.
        settings: how much is measured.
        pairs: further pair files for the part sts.
        paths: name or folder of each model by its name in the results, for parts that load it in a process of its own.
        progress: is told what is being done.
        missing: data sets that a part did not find while it measured the rest.
    """

    model: "MeasuredModel"
    baselines: list["MeasuredModel"]
    data: Data
    settings: Settings
    pairs: tuple[Path, ...] = ()
    paths: dict[str, str] = field(default_factory=dict)
    progress: Progress = field(default_factory=Silent)
    missing: list[MissingData] = field(default_factory=list)

    @property
    def encoders(self) -> list["MeasuredModel"]:
        """The LAM and, after it, the baselines."""
        return [self.model, *self.baselines]

    @contextlib.contextmanager
    def may_lack(self) -> Iterator[None]:
        """Note missing data and go on after the block."""
        try:
            yield
        except MissingData as missing:
            self.missing.append(missing)
            self.say(str(missing))

    def say(self, line: str) -> None:
        """Say what is being done."""
        self.progress.say(line)


def no_weaknesses(results: Results) -> list[str]:
    """The weaknesses of a part that judges nothing."""
    return []


@dataclass(frozen=True)
class Part:
    """One part of the evaluation.

    Attributes:
        name: of the result file, OUT/NAME.json, and in `lam evaluate --only NAME`.
        run: measures, and returns the numbers of the result file. It raises `MissingData` where nothing can be
            measured, and wraps what may be missing alone in `Context.may_lack`. None: another command writes the file.
        section: the chapter of the report, from a result file that has numbers.
        weaknesses: what the numbers say against the model, in sentences, each by a rule. It is given all result files
            of a folder, of which its own may be missing.
        figures: for each figure, by name, what draws it from the numbers and the name of the model; it returns None
            where the numbers are not enough.
        settings: class of the part's own settings, a frozen dataclass whose defaults are those of a report. No two
            parts have a field of the same name, since result files hold the settings of all parts side by side.
        quick: the settings of `lam evaluate --quick`.
    """

    name: str
    run: Callable[[Context], Numbers] | None
    section: Callable[[Record], Section]
    weaknesses: Callable[[Results], list[str]] = no_weaknesses
    figures: Mapping[str, Callable[[Numbers, str], "Figure | None"]] = field(default_factory=dict)
    settings: type[Any] | None = None
    quick: Any = None
