"""The README's numbers, written from the committed result files.

python -m lam_transformers.evaluation.readme           rewrites the block in README.md
python -m lam_transformers.evaluation.readme --check   exit status 1 if the block is not what the files say
"""

import sys
from pathlib import Path

from .claims import model_name, numbers_of, with_interval
from .report import Results
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
    ours, rows = model_name(results), []
    if numbers := numbers_of(results, "sts"):
        for name in ("stsb_dev", "stsb_test"):
            for model, x in numbers["sets"].get(name, {"models": {}})["models"].items():
                shown = with_interval(x["pearson"], x["pearson_interval"])
                rows.append((f"STS-B {name[5:]}, Pearson", model, shown))
    if numbers := numbers_of(results, "retrieval"):
        for name, found in numbers["sets"].items():
            best = sorted(found["models"].items(), key=lambda item: (item[0] != ours, -item[1]["mean"]))
            rows += [(f"{name}, nDCG@10", model, with_interval(x["mean"], x["interval"])) for model, x in best]
    if numbers := numbers_of(results, "scaling"):
        for model, found in numbers["models"].items():
            done = [row for row in found["rows"] if "seconds" in row]
            for row in (done[0], done[-1]) if done else ():
                rows.append((f"tokens/s at {row['tokens']:,} tokens", model, f"{row['tokens_per_second']:,.0f}"))
    lines = ["| | model | |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    environment = next(iter(results.values()))["environment"]
    source = f"{environment['processor']}, {environment['cores']} cores, {environment['date']}; 95 % intervals."
    more = f"All parts, with what LAM is not good at: [the report]({RESULTS}/EVALUATION_REPORT.md)."
    return "\n".join([*lines, "", source, more])


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
