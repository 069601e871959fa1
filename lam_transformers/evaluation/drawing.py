"""What the parts draw their figures with. The style is in lam.mplstyle.

matplotlib is loaded when something is drawn, not before: a process that measures its own memory loads parts, too.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..io.results import Numbers, Results, numbers_of
from .part import Part

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = Path(__file__).parent / "lam.mplstyle"
# The colours of lam.mplstyle, for what is not drawn in their order.
COLOURS = ("#1f5fa8", "#d1602c", "#7a7a7a", "#3f8f5f", "#8a4fa3", "#b58900", "#c23b6b", "#2aa198", "#555555")
Series = dict[str, tuple[list[float], list[float]]]  # x and y by label


def new_figure(size: tuple[float, float] | None = None) -> "Figure":
    """An empty figure; size in inches, by default that of the style."""
    from matplotlib.figure import Figure

    return Figure(figsize=size)


def new_axes(title: str, x: str, y: str, size: tuple[float, float] | None = None) -> tuple["Figure", "Axes"]:
    """A figure with one pair of axes and their labels."""
    figure = new_figure(size)
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def bars(axes: "Axes", labels: Sequence[str], rows: Sequence[Numbers]) -> None:
    """Horizontal bars with intervals, the first row at the top. rows: {"mean", "interval"}."""
    places = np.arange(len(rows))[::-1]
    means = np.array([row["mean"] for row in rows])
    low, high = np.array([row["interval"] for row in rows]).T
    errors = np.abs([means - low, high - means])
    colours = [COLOURS[0] if i == 0 else COLOURS[2] for i in range(len(rows))]
    axes.barh(places, means, xerr=errors, color=colours, height=0.65, error_kw={"linewidth": 1, "capsize": 2})
    axes.set_yticks(places, labels)
    axes.grid(axis="y", visible=False)
    for place, mean, top in zip(places, means, high, strict=True):
        axes.text(max(top, mean), place, f" {mean:.3f}", va="center", fontsize=8)


def lines(axes: "Axes", series: Series, model: str, legend: bool = True) -> None:
    """Lines with a legend. The model's are wider, and so stay visible under one that covers them."""
    for i, (name, (x, y)) in enumerate(series.items()):
        ours = name.startswith(model)
        axes.plot(
            x,
            y,
            marker="o",
            markersize=6.0 if ours else 3.5,
            linewidth=3.4 if ours else 1.6,
            color=COLOURS[i % len(COLOURS)],
            label=name,
        )
    if legend:
        axes.legend()


def add_point(series: Series, label: str, x: float, y: float) -> None:
    """Add a point to the line `label`, which is begun where it is missing."""
    xs, ys = series.setdefault(label, ([], []))
    xs.append(x)
    ys.append(y)


def draw_figures(parts: Iterable[Part], results: Results, folder: Path) -> Mapping[str, Path]:
    """Draw every figure of the parts that were measured to FOLDER/NAME.png; returns the files by name."""
    import matplotlib

    drawn: dict[str, Path] = {}
    for part in parts:
        numbers = numbers_of(results, part.name)
        for name, draw in part.figures.items() if numbers else ():
            with matplotlib.rc_context(fname=STYLE):
                figure = draw(numbers or {}, results[part.name]["model"]["name"])
                if figure is None:
                    continue
                folder.mkdir(parents=True, exist_ok=True)
                drawn[name] = folder / f"{name}.png"
                metadata: dict[str, Any] = {"Software": None}  # without it the same numbers give the same bytes
                figure.savefig(drawn[name], metadata=metadata)
    return drawn
