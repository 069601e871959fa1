"""EVALUATION_REPORT.md and report.html, written from the result files alone: no number is typed by hand."""

import base64
import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .research.claims import (
    CLAIMED_MEMORY_MB,
    CLAIMED_SPEED,
    TABLE_LENGTHS,
    baseline_names,
    contribution,
    findings,
    numbers_of,
    weaknesses,
    with_interval,
)
from .suite import PARTS, read_results

Results = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Table:
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Points:
    points: list[str]


@dataclass(frozen=True)
class Figure:
    name: str
    caption: str


@dataclass
class Section:
    title: str
    blocks: list[Text | Table | Points | Figure] = field(default_factory=list)


def write_report(folder: Path) -> Path:
    """Draw the figures and write both reports into the folder of the results; returns the path of the HTML page.

    Raises ValueError if the folder holds no results, broken ones, or those of several models.
    """
    from .drawing import draw_figures

    folder = Path(folder)
    results = read_results(folder) if folder.is_dir() else {}
    if not results:
        raise ValueError(f"{folder} holds no results; run lam evaluate MODEL --out {folder} first.")
    figures = draw_figures(results, folder / "figures")
    sections = report_sections(results)
    for section in sections:
        section.blocks = [b for b in section.blocks if not isinstance(b, Figure) or b.name in figures]
    title = f"Evaluation of {next(iter(results.values()))['model']['name']}"
    (folder / "EVALUATION_REPORT.md").write_text(to_markdown(title, sections), encoding="utf-8")
    page = folder / "report.html"
    page.write_text(to_html(title, sections, figures), encoding="utf-8")
    return page


def report_sections(results: Results) -> list[Section]:
    """Everything a report says, in order."""
    sections = [_how(results), _claims(results), _weak(results)]
    makers: dict[str, Callable[[dict[str, Any]], Section]] = {
        "sts": _sts, "mteb": _mteb, "scaling": _scaling, "long_context": _long_context, "retrieval": _retrieval,
        "recall": _recall, "babi": _babi, "ablation": _ablation, "ablation_retrained": _retrained, "pillars": _pillars,
    }  # fmt: skip
    sections += [make(results[part]) for part, make in makers.items() if numbers_of(results, part)]
    return [*sections, _missing(results)]


def _how(results: Results) -> Section:
    first = next(iter(results.values()))
    model, quick = first["model"], any(r.get("settings", {}).get("quick") for r in results.values())
    baselines = baseline_names(results)
    rows = []
    for part, record in results.items():
        environment = record["environment"]
        machine = f"{environment['processor']}, {environment['cores']} cores, {environment['threads']} threads"
        seconds = f"{record['seconds']:,.0f} s" if "seconds" in record else ""
        rows.append((part, environment["date"], environment["commit"], machine, seconds))
    blocks: list[Any] = [
        Text(
            f"Model {model['name']}, {model['parameters']:,} parameters, SHA-256 of the weights "
            f"{(model.get('checksum') or 'none used')[:16]}, backend {model['backend']}. Beside it: "
            f"{', '.join([*baselines, 'BM25 and a bag of tokens where they apply'])}."
        ),
        Text("Intervals are 95 %. A number is measured or absent. Everything here is written from the result files."),
    ]
    if quick:
        blocks.append(Text("Some parts were run with --quick: small samples, for a look only."))
    versions = ", ".join(f"{name} {number}" for name, number in first["environment"]["versions"].items())
    return Section(
        "How it was measured",
        [*blocks, Table(("part", "date", "commit", "machine", "time"), rows), Text(f"Versions: {versions}.")],
    )


def _claims(results: Results) -> Section:
    rows = [(f.claim, f.measured, f.verdict) for f in findings(results)]
    return Section("Claims of the documents", [Table(("claim in the documents", "measured", "verdict"), rows)])


def _weak(results: Results) -> Section:
    lines = weaknesses(results)
    text = Text("Each line follows from the numbers below by a rule; nothing was added or left out by hand.")
    return Section("What the model is not good at", [text, Points(lines or ["Nothing that these parts would show."])])


def _sts(record: dict[str, Any]) -> Section:
    blocks: list[Any] = []
    for name, found in record["numbers"]["sets"].items():
        rows = []
        for model, x in found["models"].items():
            difference = found["differences"].get(model)
            rows.append((
                model, with_interval(x["pearson"], x["pearson_interval"], 4),
                with_interval(x["spearman"], x["spearman_interval"], 4), _p(x["pearson_p"]),
                f"{x['mae']:.3f}", f"{x['rmse']:.3f}",
                with_interval(difference["pearson"]["difference"], difference["pearson"]["interval"], 4)
                if difference else "",
            ))  # fmt: skip
        fitted = next(iter(found["models"].values()))["calibration"]["fitted_on"]
        blocks += [
            Text(f"{name}: {found['pairs']:,} pairs; MAE and RMSE after a linear calibration fitted on {fitted}."),
            Table(("model", "Pearson", "Spearman", "p", "MAE", "RMSE", "LAM minus it (Pearson)"), rows),
        ]
    blocks += [
        Figure("sts", "Pearson correlation with human scores."),
        Figure("sts_ranges", "Correlation within ranges of the human score: a narrow range leaves little to follow."),
    ]
    for name, found in record["numbers"]["sets"].items():
        cases = [
            (f"{c['score']:.1f}", f"{c['predicted']:.1f}", c["sentence1"], c["sentence2"]) for c in found["error_cases"]
        ]
        blocks += [
            Text(f"The largest errors on {name}:"), Table(("people", "model", "sentence 1", "sentence 2"), cases)
        ]  # fmt: skip
    return Section("Similarity of sentences", blocks)


def _mteb(record: dict[str, Any]) -> Section:
    rows = [(n, f"{x['pearson']:.4f}", f"{x['spearman']:.4f}") for n, x in record["numbers"]["tasks"].items()]
    return Section("STS tasks of MTEB", [Table(("task", "Pearson", "Spearman"), rows)])


def _scaling(record: dict[str, Any]) -> Section:
    numbers, ours = record["numbers"], record["model"]["name"]
    rows = []
    for model, found in numbers["models"].items():
        for row in found["rows"]:
            if "failed" in row:
                rows.append((model, f"{row['tokens']:,}", row["failed"], "", "", ""))
                continue
            rows.append((
                model, f"{row['tokens']:,}", f"{row['seconds']:.3f}", f"{row['tokens_per_second']:,.0f}",
                f"{row['above_loaded_mb']:.0f}", f"{row['peak_mb']:.0f}",
            ))  # fmt: skip
    fits = [
        (m, with_interval(x["time_fit"]["exponent"], x["time_fit"]["interval"]), f"{x['time_fit']['from']:,.0f}",
         f"{x['time_fit']['to']:,.0f}", str(x["time_fit"]["points"]))
        for m, x in numbers["models"].items() if x["time_fit"]
    ]  # fmt: skip
    by_length = {row["tokens"]: row for row in numbers["models"][ours]["rows"] if "seconds" in row}
    best: dict[int, float] = {}
    for ratio in numbers["speed_ratio"]:
        best[ratio["tokens"]] = max(best.get(ratio["tokens"], 0.0), ratio["ratio"])
    beside = [
        (
            f"{tokens:,}",
            f"{CLAIMED_MEMORY_MB[tokens]} MB" if tokens in CLAIMED_MEMORY_MB else "not quoted",
            f"{by_length[tokens]['peak_mb']:.0f} MB" if tokens in by_length else "",
            f"{CLAIMED_SPEED[tokens]}x" if tokens in CLAIMED_SPEED else "not quoted",
            f"{best[tokens]:.2f}x" if tokens in best else "",
        )
        for tokens in TABLE_LENGTHS
    ]
    return Section("Linear scaling", [
        Text(
            "Each point runs in a process of its own, from token ids to one embedding. Peak memory is the sampled "
            "resident set; \"beside the model\" is what it rises above the loaded model."
        ),
        Table(("model", "tokens", "seconds", "tokens/s", "MB beside the model", "MB of the process"), rows),
        Text("Fit of seconds = a tokens^b; null hypothesis of linear scaling: b = 1."),
        Table(("model", "exponent b", "from", "to", "points"), fits),
        Text("The documents' table beside the measured one (memory of the whole process; speed against the baseline)."),
        Table(("tokens", "memory, documents", "memory, measured", "speed, documents", "speed, measured"), beside),
        Figure("scaling_time", "Seconds for one text; a slope of 1 is linear."),
        Figure("scaling_memory", "Memory beside the loaded model."),
    ])  # fmt: skip


def _long_context(record: dict[str, Any]) -> Section:
    numbers = record["numbers"]
    moved = [
        (row["model"], f"{row['tokens']:,}", f"{row['depth']:.2f}", f"{row['distance']:.2e}", f"{row['share']:.2%}")
        for row in numbers["sensitivity"]["rows"]
    ]
    kept = [
        (f"{row['lag']:,}", row["memory"], with_interval(row["found"]["mean"], row["found"]["interval"], 2),
         f"{row['control_found']['mean']:.2f}", f"{row['margin']:.3f}", f"{row['control_margin']:.3f}", _p(row["p"]))
        for row in numbers["retention"]["rows"]
    ]  # fmt: skip
    probes = [
        (row["probe"], f"{row['tokens']:,}", row["model"], with_interval(row["mean"], row["interval"], 2))
        for row in numbers["probes"]["rows"]
    ]
    return Section("Long texts", [
        Text(f"Texts are from {len(numbers['books'])} books that no training reads."),
        Text(
            f"Sensitivity: {numbers['sensitivity']['changed_tokens']} tokens are exchanged at a depth of the text. "
            "Null hypothesis: text behind the 512th token does not matter (distance 0, as for a model that cuts there)."
        ),
        Table(("model", "tokens", "depth", "cosine distance", "share exchanged"), moved),
        Figure("sensitivity", "Distance by depth, for texts of several lengths."),
        Text(
            f"Retention: {numbers['retention']['facts']} facts, read out of the memories themselves. Null hypothesis: "
            "a text with the fact answers no better than the same text without it."
        ),
        Table(("tokens since", "memory", "found", "found without the fact", "margin", "margin without", "p"), kept),
        Figure("retention", "Facts that the memories still answer for; dotted: chance."),
        Text(
            "Passkey and needle are lexical probes: the query repeats words that stand in one document only. Whoever "
            "counts words can pass them; they say nothing about understanding."
        ),
        Table(("probe", "tokens", "model", "found first"), probes),
        Figure("lexical_probes", "Lexical probe by length of the documents; dotted: chance."),
    ])  # fmt: skip


def _retrieval(record: dict[str, Any]) -> Section:
    blocks: list[Any] = []
    for name, found in record["numbers"]["sets"].items():
        tokens = found["tokens"]
        rows = []
        for model, x in sorted(found["models"].items(), key=lambda item: -item[1]["mean"]):
            difference = found["differences"].get(model)
            shown = with_interval(difference["mean"], difference["interval"]) if difference else ""
            rows.append((model, with_interval(x["mean"], x["interval"]), shown))
        blocks += [
            Text(
                f"{name}: {found['documents']} documents (median {tokens['median']:,.0f}, largest "
                f"{tokens['largest']:,} tokens), {found['queries']} queries. Null hypothesis of each difference: none."
            ),
            Table(("model", "nDCG@10", "LAM minus it"), rows),
        ]
    return Section("Retrieval of long documents", [*blocks, Figure("long_retrieval", "nDCG@10 on long documents.")])


def _recall(record: dict[str, Any]) -> Section:
    numbers = record["numbers"]
    by_case: dict[tuple, dict[str, Any]] = {}
    for row in numbers["rows"]:
        key = (row["through"], row["keys"], "yes" if row["overwrites"] else "no", row["pairs"])
        by_case.setdefault(key, {})[row["rule"]] = row
    rows = [
        (*map(str, key), with_interval(found["delta rule"]["mean"], found["delta rule"]["interval"], 2),
         with_interval(found["additive"]["mean"], found["additive"]["interval"], 2), _p(found["delta rule"]["p"]))
        for key, found in by_case.items()
    ]  # fmt: skip
    return Section("Associative recall", [
        Text(
            f"Keys and values of width {numbers['width']}; share of keys whose last value comes back, "
            f"{numbers['trials']} trials. Null hypothesis: the delta rule recalls no more than additive memory. The "
            "trained rule has the write strengths and decays that the model gives to real text."
        ),
        Table(("through", "keys", "overwrites", "pairs", "delta rule", "additive", "p"), rows),
        Figure("recall", "Recall with half of the keys written twice; dotted: as many pairs as dimensions."),
    ])  # fmt: skip


def _babi(record: dict[str, Any]) -> Section:
    rows = [
        (str(row["task"]), row["name"], row["model"], with_interval(row["mean"], row["interval"], 2))
        for row in record["numbers"]["rows"]
    ]
    return Section("bAbI", [
        Text("Null hypothesis: the embedding answers no better than a bag of tokens, which knows no order."),
        Table(("task", "name", "model", "accuracy of a linear probe"), rows),
        Figure("babi", "Accuracy by task."),
    ])  # fmt: skip


def _ablation_table(numbers: dict[str, Any]) -> Table:
    rows = [
        (row["label"], f"{row['stsb_dev']:.4f}", with_interval(row["stsb_dev_difference"], row["stsb_dev_interval"], 4),
         f"{row['long_text']:.3f}", with_interval(row["long_text_difference"], row["long_text_interval"]),
         "" if i == 0 else contribution(row))
        for i, row in enumerate(numbers["rows"])
    ]  # fmt: skip
    return Table(("model", "STS-B dev", "difference", "long texts nDCG@10", "difference", "contributes"), rows)


def _ablation(record: dict[str, Any]) -> Section:
    return Section("Components switched off", [
        Text(
            "In the trained model, nothing trained again. Null hypothesis of each row: no difference. A trained model "
            "relies on what it was trained with, so a loss here does not say that the component is needed."
        ),
        _ablation_table(record["numbers"]),
        Figure("ablation", "Difference to the full model."),
    ])  # fmt: skip


def _retrained(record: dict[str, Any]) -> Section:
    numbers = record["numbers"]
    return Section("Trained without a component", [
        Text(
            f"From {numbers['base']}, {numbers['steps']} updates ({numbers['tokens']:,} tokens), seeds "
            f"{', '.join(numbers['seeds'])}; start, data and their order are the same for all. A short run: it says "
            "what a component does at this budget. Intervals span those of all seeds."
        ),
        _ablation_table(numbers),
        Figure("ablation_retrained", "Difference to the full model trained in the same way."),
    ])  # fmt: skip


def _pillars(record: dict[str, Any]) -> Section:
    rows = [
        (row["pillar"], row["statement"], row["null"], _shown(row["measured"]), _p(row["p"]),
         "passes" if row["passes"] else "fails")
        for row in record["numbers"]["pillars"]
    ]  # fmt: skip
    return Section("Six pillars", [
        Table(("pillar", "statement", "null hypothesis", "measured", "p", "verdict"), rows),
        Figure("forgetting", "Recall against the number of tokens read since, and three curves."),
        Figure("salience", "psi by rarity of the token."),
    ])  # fmt: skip


def _missing(results: Results) -> Section:
    absent = [part for part in (*PARTS, "ablation_retrained") if not numbers_of(results, part)]
    lines = [f"{part} was not measured." for part in absent]
    lines += [f"{part}: {x['name']}. {x['how']}" for part, r in results.items() for x in r.get("missing", [])]
    return Section("What was not measured", [Points(lines or ["Nothing is missing."])])


def _shown(measured: dict[str, Any]) -> str:
    """The plain numbers of a pillar."""
    plain = {name: x for name, x in measured.items() if isinstance(x, int | float | str)}
    return ", ".join(
        f"{name.replace('_', ' ')} {x:.3f}" if isinstance(x, float) else f"{name.replace('_', ' ')} {x}"
        for name, x in plain.items()
    )


def _p(p: float) -> str:
    return "< 1e-300" if p == 0 else f"{p:.2g}"


def to_markdown(title: str, sections: Iterable[Section]) -> str:
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for block in section.blocks:
            if isinstance(block, Text):
                lines += [block.text, ""]
            elif isinstance(block, Points):
                lines += [*(f"- {point}" for point in block.points), ""]
            elif isinstance(block, Table):
                lines += [_row(block.header), _row(("---",) * len(block.header)), *map(_row, block.rows), ""]
            else:
                lines += [f"![{block.caption}](figures/{block.name}.png)", ""]
    return "\n".join(lines).rstrip() + "\n"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; font-size: 0.85rem; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 0.6rem; border-bottom: 1px solid #e4e4e4; }
th { border-bottom: 2px solid #999; } td { font-variant-numeric: tabular-nums; }
figure { margin: 1.5rem 0; } img { max-width: 100%; } figcaption { color: #555; font-size: 0.85rem; }
.holds, .passes { color: #1d7a3a; } .fails { color: #b3261e; } .part { color: #9a6700; } .open { color: #666; }
nav a { margin-right: 1rem; }
"""
VERDICTS = {
    "holds": "holds", "passes": "passes", "holds in part": "part", "does not hold": "fails", "fails": "fails",
    "not measured": "open",
}  # fmt: skip


def to_html(title: str, sections: list[Section], figures: dict[str, Path]) -> str:
    """One page without anything outside it."""
    body, links = [], []
    for number, section in enumerate(sections):
        links.append(f'<a href="#s{number}">{html.escape(section.title)}</a>')
        body.append(f'<h2 id="s{number}">{html.escape(section.title)}</h2>')
        body += [_block_html(block, figures) for block in section.blocks]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    parts = ["<!doctype html>", f'<html lang="en"><head>{head}{view}</head><body>', f"<h1>{html.escape(title)}</h1>"]
    return "\n".join([*parts, f"<nav>{' '.join(links)}</nav>", *body, "</body></html>"]) + "\n"


def _block_html(block: Text | Table | Points | Figure, figures: dict[str, Path]) -> str:
    if isinstance(block, Text):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Points):
        return f"<ul>{''.join(f'<li>{html.escape(point)}</li>' for point in block.points)}</ul>"
    if isinstance(block, Figure):
        data = base64.b64encode(figures[block.name].read_bytes()).decode()
        caption = html.escape(block.caption)
        image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    rows = "".join(f"<tr>{''.join(_cell_html(cell) for cell in row)}</tr>" for row in block.rows)
    header = "".join(f"<th>{html.escape(cell)}</th>" for cell in block.header)
    return f"<table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>"


def _cell_html(cell: str) -> str:
    kind = f' class="{VERDICTS[cell]}"' if cell in VERDICTS else ""
    return f"<td{kind}>{html.escape(cell)}</td>"
