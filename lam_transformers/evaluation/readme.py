"""The README's numbers, written from the committed result files.

python -m lam_transformers.evaluation.readme           rewrites the block in README.md
python -m lam_transformers.evaluation.readme --check   exit status 1 if the block is not what the files say
"""

import sys
from pathlib import Path

from .report import Results
from .research.claims import baseline_names, model_name, numbers_of, with_interval
from .suite import read_results

ROOT = Path(__file__).resolve().parents[2]
RESULTS = "docs/evaluation"
BEGIN = "<!-- numbers: python -m lam_transformers.evaluation.readme writes what stands up to the end mark -->"
END = "<!-- end of numbers -->"


def numbers_block(results: Results) -> str:
    """Markdown of the main numbers; a sentence where nothing was measured yet.

    Raises ValueError for results of a --quick run.
    """
    if not results:
        return "No evaluation of released weights is committed yet."
    if quick := [part for part, record in results.items() if record.get("settings", {}).get("quick")]:
        raise ValueError(f"The results of {', '.join(quick)} are of a --quick run, which is not for the README.")
    columns = [model_name(results), *baseline_names(results), "BM25", "bag of tokens"]
    rows: list[list[str]] = []
    if numbers := numbers_of(results, "sts"):
        for name in ("stsb_dev", "stsb_test"):
            found = numbers["sets"].get(name, {"models": {}})["models"]
            shown = {model: with_interval(x["pearson"], x["pearson_interval"]) for model, x in found.items()}
            rows.append([f"STS-B {name[5:]}, Pearson", *(shown.get(column, "-") for column in columns)])
    if numbers := numbers_of(results, "retrieval"):
        for name, found in numbers["sets"].items():
            rows.append([f"{name}, nDCG@10", *(_best(found["models"], column) for column in columns)])
    if numbers := numbers_of(results, "scaling"):
        done = {
            model: {row["tokens"]: f"{row['tokens_per_second']:,.0f}" for row in found["rows"] if "seconds" in row}
            for model, found in numbers["models"].items()
        }
        for tokens in sorted({end for speeds in done.values() if speeds for end in (min(speeds), max(speeds))}):
            rows.append([f"tokens/s at {tokens:,}", *(done.get(column, {}).get(tokens, "-") for column in columns)])
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|", *(f"| {' | '.join(r)} |" for r in rows)]
    environment = next(iter(results.values()))["environment"]
    source = f"{environment['processor']}, {environment['cores']} cores, {environment['date']}; 95 % intervals."
    more = f"All parts, with what LAM is not good at: [the report]({RESULTS}/EVALUATION_REPORT.md)."
    return "\n".join([*lines, "", source, more])


def _best(models: dict, name: str) -> str:
    """The score of a model, or of the best way in which it was used ("NAME, mean of chunks"), which is then named."""
    ways = {way: x["mean"] for way, x in models.items() if way.startswith(f"{name}, ")}
    way = name if name in models else max(ways, key=lambda way: ways[way], default="")
    if not way:
        return "-"
    shown = with_interval(models[way]["mean"], models[way]["interval"])
    return shown if way == name else f"{shown} ({way.removeprefix(f'{name}, ')})"


def with_block(text: str, block: str) -> str:
    """The text with its numbers block replaced. Raises ValueError unless it has one pair of marks."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"README.md must hold one pair of marks: {BEGIN} and {END}.")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{rest.split(END)[1]}"


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Rewrite the block, or with --check only compare it; returns the exit status."""
    readme, folder = root / "README.md", root / RESULTS
    text = readme.read_text(encoding="utf-8")
    wanted = with_block(text, numbers_block(read_results(folder) if folder.is_dir() else {}))
    if "--check" not in arguments:
        readme.write_text(wanted, encoding="utf-8")
    elif text != wanted:
        print(f"README.md differs from {RESULTS}/*.json: run python -m lam_transformers.evaluation.readme.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
