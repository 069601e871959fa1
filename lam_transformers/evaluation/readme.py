"""The README's numbers, written from the committed result files.

python -m lam_transformers.evaluation.readme           rewrites the block in README.md
python -m lam_transformers.evaluation.readme --check   exit status 1 if the block is not what the files say, or if they
                                                       say that a bag of tokens does as well
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..io.results import Numbers, Results, baseline_names, model_name, numbers_of, read_results
from ..io.templates import render
from .blocks import with_interval
from .models import BagOfTokens
from .parts import retrieval, scaling, sts

ROOT = Path(__file__).resolve().parents[2]
RESULTS = "docs/evaluation"
BEGIN = "<!-- numbers: python -m lam_transformers.evaluation.readme writes what stands up to the end mark -->"
END = "<!-- end of numbers -->"
Row = tuple[str, list[str]]  # label, and a cell for each column


def numbers_block(results: Results) -> str:
    """Markdown of the main numbers; a sentence where nothing was measured yet.

    Raises:
        ValueError: for results of a --quick run.
    """
    if not results:
        return "No evaluation of released weights is committed yet."
    if quick := [part for part, record in results.items() if record.get("settings", {}).get("quick")]:
        raise ValueError(f"The results of {', '.join(quick)} are of a --quick run, which is not for the README.")
    columns = [model_name(results), *baseline_names(results), "BM25", "bag of tokens"]
    rows: list[Row] = []
    if numbers := numbers_of(results, sts.PART.name):
        rows += _sts_rows(numbers, columns)
    if numbers := numbers_of(results, retrieval.PART.name):
        for name, measured in numbers["sets"].items():
            rows.append((f"{name}, nDCG@10", [_best(measured["models"], column) for column in columns]))
    if numbers := numbers_of(results, scaling.PART.name):
        rows += _speed_rows(numbers, columns)
    return render(
        Path(__file__).parent / "templates" / "numbers.md.j2",
        columns=columns,
        rows=rows,
        environment=next(iter(results.values()))["environment"],
        folder=RESULTS,
    ).rstrip()


def _sts_rows(numbers: Numbers, columns: Sequence[str]) -> list[Row]:
    rows = []
    for name in ("stsb_dev", "stsb_test"):
        models = numbers["sets"].get(name, {"models": {}})["models"]
        shown = {model: with_interval(x["pearson"], x["pearson_interval"]) for model, x in models.items()}
        rows.append((f"STS-B {name[5:]}, Pearson", [shown.get(column, "-") for column in columns]))
    return rows


def _speed_rows(numbers: Numbers, columns: Sequence[str]) -> list[Row]:
    """Tokens a second at the shortest and the longest text that each model was measured on."""
    speeds = {
        model: {row["tokens"]: f"{row['tokens_per_second']:,.0f}" for row in measured["rows"] if "seconds" in row}
        for model, measured in numbers["models"].items()
    }
    ends = sorted({end for own in speeds.values() if own for end in (min(own), max(own))})
    return [
        (f"tokens/s at {tokens:,}", [speeds.get(column, {}).get(tokens, "-") for column in columns]) for tokens in ends
    ]


def _best(models: Mapping[str, Any], name: str) -> str:
    """The score of a model, or of the best way in which it was used ("NAME, mean of chunks"), which is then named."""
    ways = {way: x["mean"] for way, x in models.items() if way.startswith(f"{name}, ")}
    way = name if name in models else max(ways, key=lambda way: ways[way], default="")
    if not way:
        return "-"
    shown = with_interval(models[way]["mean"], models[way]["interval"])
    return shown if way == name else f"{shown} ({way.removeprefix(f'{name}, ')})"


def below_floor(results: Results) -> list[str]:
    """Sets on which the model is below the floor of published results.

    On sentences it has to be better than a bag of tokens, on long documents not worse.

    Returns:
        a sentence for each set that is below it, with the 95 % interval of the difference.
    """
    bag = BagOfTokens.name
    lines = []
    for name, measured in (numbers_of(results, sts.PART.name) or {"sets": {}})["sets"].items():
        low, high = measured["differences"][bag]["pearson"]["interval"]
        if low <= 0:
            lines.append(f"{name}: the correlation is not above that of a {bag} ({low:.3f}, {high:.3f}).")
    for name, measured in (numbers_of(results, retrieval.PART.name) or {"sets": {}})["sets"].items():
        low, high = measured["differences"][bag]["interval"]
        if high < 0:
            lines.append(f"{name}: nDCG@10 is below that of a {bag} ({low:.3f}, {high:.3f}).")
    return lines


def with_block(text: str, block: str) -> str:
    """The text with its numbers block replaced.

    Raises:
        ValueError: unless the text has one pair of marks.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"README.md must hold one pair of marks: {BEGIN} and {END}.")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{rest.split(END)[1]}"


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Rewrite the block, or with --check only compare it; returns the exit status."""
    readme = root / "README.md"
    folder = root / RESULTS
    text = readme.read_text(encoding="utf-8")
    results = read_results(folder) if folder.is_dir() else {}
    wanted = with_block(text, numbers_block(results))
    if "--check" not in arguments:
        readme.write_text(wanted, encoding="utf-8")
        return 0
    wrong = below_floor(results)
    if text != wanted:
        wrong.append(f"README.md differs from {RESULTS}/*.json: run python -m lam_transformers.evaluation.readme.")
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
