"""EVALUATION_REPORT.md and report.html, written from the result files alone: no number is typed by hand."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..io.results import Results, baseline_names, numbers_of, read_results
from ..io.templates import render
from .blocks import Block, Figure, Points, Section, Table, Text, prose
from .drawing import draw_figures
from .research import claims
from .suite import PARTS

TEMPLATES = Path(__file__).parent / "templates"
# How the page colours the cells that are verdicts.
VERDICTS = {
    "holds": "holds",
    "passes": "passes",
    "holds in part": "part",
    "does not hold": "fails",
    "fails": "fails",
    "not measured": "open",
}


def write_report(folder: Path) -> Path:
    """Draw the figures and write both reports into the folder of the results.

    Returns:
        the path of the HTML page.

    Raises:
        ValueError: if the folder holds no results, broken ones, or those of several models.
    """
    folder = Path(folder)
    results = read_results(folder) if folder.is_dir() else {}
    if not results:
        raise ValueError(f"{folder} holds no results; run lam evaluate MODEL --out {folder} first.")
    figures = draw_figures(PARTS, results, folder / "figures")
    sections = report_sections(results)
    for section in sections:
        section.blocks = [block for block in section.blocks if not isinstance(block, Figure) or block.name in figures]
    title = f"Evaluation of {next(iter(results.values()))['model']['name']}"
    (folder / "EVALUATION_REPORT.md").write_text(to_markdown(title, sections), encoding="utf-8")
    page = folder / "report.html"
    page.write_text(to_html(title, sections, figures), encoding="utf-8")
    return page


def report_sections(results: Results) -> list[Section]:
    """Everything a report says, in order."""
    return [
        how_it_was_measured(results),
        claims.section(results),
        weak_points(results),
        *(part.section(results[part.name]) for part in PARTS if numbers_of(results, part.name)),
        not_measured(results),
    ]


def how_it_was_measured(results: Results) -> Section:
    """Model, baselines, machine and versions."""
    first = next(iter(results.values()))
    rows = []
    for part, record in results.items():
        environment = record["environment"]
        machine = f"{environment['processor']}, {environment['cores']} cores, {environment['threads']} threads"
        seconds = f"{record['seconds']:,.0f} s" if "seconds" in record else ""
        rows.append((part, environment["date"], environment["commit"], machine, seconds))
    blocks: list[Block] = [
        prose(
            """
            Model {{ model.name }}, {{ "{:,}".format(model.parameters) }} parameters, SHA-256 of the weights
            {{ checksum[:16] }}, backend {{ model.backend }}.
            Beside it: {{ (baselines + ["BM25 and a bag of tokens where they apply"]) | join(", ") }}.
            """,
            model=first["model"],
            checksum=first["model"].get("checksum") or "none used",
            baselines=baseline_names(results),
        ),
        Text("Intervals are 95 %. A number is measured or absent. Everything here is written from the result files."),
    ]
    if any(record.get("settings", {}).get("quick") for record in results.values()):
        blocks.append(Text("Some parts were run with --quick: small samples, for a look only."))
    versions = ", ".join(f"{name} {number}" for name, number in first["environment"]["versions"].items())
    blocks.append(Table(("part", "date", "commit", "machine", "time"), rows))
    blocks.append(Text(f"Versions: {versions}."))
    return Section("How it was measured", blocks)


def weaknesses(results: Results) -> list[str]:
    """What the model is not good at, each with its numbers, where the numbers say so."""
    return [line for part in PARTS for line in part.weaknesses(results)]


def weak_points(results: Results) -> Section:
    """The section of the weaknesses."""
    return Section(
        "What the model is not good at",
        [
            Text("Each line follows from the numbers below by a rule; nothing was added or left out by hand."),
            Points(weaknesses(results) or ["Nothing that these parts would show."]),
        ],
    )


def not_measured(results: Results) -> Section:
    """Parts without numbers, and data that was missing."""
    lines = [f"{part.name} was not measured." for part in PARTS if not numbers_of(results, part.name)]
    lines += [
        f"{part}: {missing['name']}. {missing['how']}"
        for part, record in results.items()
        for missing in record.get("missing", [])
    ]
    return Section("What was not measured", [Points(lines or ["Nothing is missing."])])


def to_markdown(title: str, sections: Iterable[Section]) -> str:
    """The report for the repository; figures are files beside it."""
    text = render(TEMPLATES / "report.md.j2", title=title, sections=sections, row=_markdown_row)
    return text.rstrip() + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"


def to_html(title: str, sections: Sequence[Section], figures: Mapping[str, Path]) -> str:
    """The report as one page without anything outside it."""
    images = {name: base64.b64encode(path.read_bytes()).decode() for name, path in figures.items()}
    return render(TEMPLATES / "report.html.j2", title=title, sections=sections, images=images, verdicts=VERDICTS)
