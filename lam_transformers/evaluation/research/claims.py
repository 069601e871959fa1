"""What the LAM documents claim, what was measured, and whether it holds; and what the model is not good at."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Results = dict[str, dict[str, Any]]
HOLDS, PARTLY, FAILS, OPEN = "holds", "holds in part", "does not hold", "not measured"
CLAIMED_PEARSON = 0.836
CLAIMED_MEMORY_MB = {128: 50, 1_000_000: 180}
CLAIMED_SPEED = {128: 1, 1_000_000: 100}
CLAIMED_8K_MB = 12
TABLE_LENGTHS = (128, 1_000, 10_000, 100_000, 1_000_000)
COMPARABLE = 0.8  # of the baseline's speed
HARDLY = 0.3  # a correlation below that
TRAINED = ("trained rule", "random")
LINEAR = 1.15  # largest exponent of time that counts as linear
MEGABYTES = 4 / 2**20  # of a float32 parameter


@dataclass(frozen=True)
class Finding:
    """A row of the table of claims."""

    claim: str
    measured: str
    verdict: str


def numbers_of(results: Results, part: str) -> dict[str, Any] | None:
    return results.get(part, {}).get("numbers") or None


def with_interval(value: float, interval: list[float], digits: int = 3) -> str:
    return f"{value:.{digits}f} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def model_name(results: Results) -> str:
    return next(iter(results.values()))["model"]["name"]


def baseline_names(results: Results) -> list[str]:
    """The sentence-transformers models that were measured beside the model."""
    return sorted({name for record in results.values() for name in record.get("baselines", {})})


def scaling_rows(results: Results) -> list[dict[str, Any]]:
    """The rows of the LAM that were measured."""
    numbers = numbers_of(results, "scaling")
    rows = numbers["models"][model_name(results)]["rows"] if numbers else []
    return [row for row in rows if "seconds" in row]


def weights_mb(results: Results) -> float:
    return next(iter(results.values()))["model"]["parameters"] * MEGABYTES


def pearson(results: Results) -> Finding:
    claim = f"STS-B Pearson correlation of {CLAIMED_PEARSON}"
    numbers = numbers_of(results, "sts")
    sets = {n: x for n, x in (numbers or {"sets": {}})["sets"].items() if n in ("stsb_dev", "stsb_test")}
    if not sets:
        return Finding(claim, "STS-B was not there", OPEN)
    found = {name: x["models"][model_name(results)] for name, x in sets.items()}
    shown = ", ".join(f"{n[5:]} {with_interval(x['pearson'], x['pearson_interval'])}" for n, x in found.items())
    reached = [x["pearson"] >= CLAIMED_PEARSON for x in found.values()]
    if len(found) < 2:
        return Finding(claim, shown, PARTLY if all(reached) else FAILS)
    return Finding(claim, shown, HOLDS if all(reached) else PARTLY if any(reached) else FAILS)


def memory(results: Results) -> Finding:
    claim = "50 to 180 MB of memory from 128 tokens to a million"
    rows = scaling_rows(results)
    if not rows:
        return Finding(claim, "scaling was not measured", OPEN)
    weights, last = weights_mb(results), rows[-1]
    worst = max(row["above_loaded_mb"] for row in rows)
    shown = (
        f"weights {weights:.0f} MB and up to {worst:.0f} MB for reading ({rows[0]['tokens']:,} to {last['tokens']:,} "
        f"tokens); the whole process with PyTorch {rows[0]['peak_mb']:.0f} to {max(r['peak_mb'] for r in rows):.0f} MB"
    )
    limit = max(CLAIMED_MEMORY_MB.values())
    if last["tokens"] < max(CLAIMED_MEMORY_MB):
        return Finding(claim, shown, OPEN)
    return Finding(claim, shown, FAILS if weights + worst > limit else HOLDS if rows[0]["peak_mb"] <= limit else PARTLY)


def memory_8k(results: Results) -> Finding:
    claim = f"{CLAIMED_8K_MB} MB at 8K tokens"
    row = next((row for row in scaling_rows(results) if row["tokens"] == 8_192), None)
    if row is None:
        return Finding(claim, "8,192 tokens were not measured", OPEN)
    shown = f"{row['above_loaded_mb']:.0f} MB beside the loaded model at 8,192 tokens"
    return Finding(claim, shown, HOLDS if row["above_loaded_mb"] <= CLAIMED_8K_MB else FAILS)


def speed(results: Results) -> Finding:
    claim = "1x to 100x the speed of a transformer, from 128 tokens to a million"
    ratios = (numbers_of(results, "scaling") or {"speed_ratio": []})["speed_ratio"]
    if not ratios:
        return Finding(claim, "no baseline was measured", OPEN)
    best = max(ratios, key=lambda row: row["ratio"])
    last = max(ratios, key=lambda row: row["tokens"])
    shown = (
        f"up to {best['ratio']:.1f}x at {best['tokens']:,} tokens against {best['baseline']}; beyond "
        f"{last['tokens']:,} tokens the baseline was not run"
    )
    reached = best["ratio"] >= max(CLAIMED_SPEED.values())
    return Finding(claim, shown, HOLDS if reached else PARTLY if best["ratio"] > 1 else FAILS)


def short_speed(results: Results) -> Finding:
    claim = "Comparable speed at short lengths"
    rows = [r for r in (numbers_of(results, "scaling") or {"speed_ratio": []})["speed_ratio"] if r["tokens"] <= 512]
    if not rows:
        return Finding(claim, "no short length was measured beside a baseline", OPEN)
    shown = ", ".join(f"{r['ratio']:.2f}x at {r['tokens']} ({r['baseline']})" for r in rows)
    good = [row["ratio"] >= COMPARABLE for row in rows]
    return Finding(
        claim, f"{shown}; comparable means {COMPARABLE}x", HOLDS if all(good) else PARTLY if any(good) else FAILS
    )


def million(results: Results) -> Finding:
    claim = "One million tokens in one pass"
    rows = scaling_rows(results)
    if not rows:
        return Finding(claim, "scaling was not measured", OPEN)
    every = results["scaling"]["numbers"]["models"][model_name(results)]["rows"]
    if failed := [row for row in every if row["tokens"] >= 1_000_000 and "failed" in row]:
        return Finding(claim, f"{failed[0]['tokens']:,} tokens: {failed[0]['failed']}", FAILS)
    last = rows[-1]
    shown = (
        f"{last['tokens']:,} tokens in {last['seconds']:,.0f} s, {last['tokens_per_second']:,.0f} tokens/s, "
        f"{'all values finite' if last['finite'] else 'NaN or infinity'}"
    )
    return Finding(claim, shown, OPEN if last["tokens"] < 1_000_000 else HOLDS if last["finite"] else FAILS)


def linear(results: Results) -> Finding:
    claim = "Time linear in the length"
    numbers = numbers_of(results, "scaling")
    fits = {n: x["time_fit"] for n, x in numbers["models"].items() if x["time_fit"]} if numbers else {}
    ours = fits.get(model_name(results))
    if ours is None:
        return Finding(claim, "too few lengths were measured", OPEN)
    shown = "; ".join(
        f"{n}: exponent {with_interval(x['exponent'], x['interval'])} over {x['from']:,.0f} to {x['to']:,.0f} tokens"
        for n, x in fits.items()
    )
    low, high = ours["interval"]
    return Finding(claim, shown, HOLDS if high <= LINEAR else FAILS if low > LINEAR else OPEN)


def components(results: Results) -> Finding:
    claim = "Each component improves the model (ablation gains)"
    for part, how in (("ablation_retrained", "trained without it"), ("ablation", "switched off, not trained again")):
        if (numbers := numbers_of(results, part)) is None:
            continue
        rows = numbers["rows"][1:]
        good = [row for row in rows if contributes(row)]
        names = ", ".join(row["ablation"] for row in good) or "none"
        rest = ", ".join(row["ablation"] for row in rows if row not in good) or "none"
        shown = f"{how}, worse on STS-B dev or long texts: {names}; no such effect: {rest}"
        if part == "ablation":
            return Finding(claim, f"{shown}; retrained ablations were not run", PARTLY if good else FAILS)
        return Finding(claim, shown, HOLDS if len(good) == len(rows) else PARTLY if good else FAILS)
    return Finding(claim, "no ablation was run", OPEN)


def contributes(row: dict[str, Any]) -> bool:
    """Whether leaving a component out is worse on one of the two tasks, the interval excluding zero."""
    return row["stsb_dev_interval"][1] < 0 or row["long_text_interval"][1] < 0


def contribution(row: dict[str, Any]) -> str:
    """What leaving a component out did, in a word or two."""
    better = row["stsb_dev_interval"][0] > 0 or row["long_text_interval"][0] > 0
    if contributes(row):
        return "yes, but better without it on one task" if better else "yes"
    return "no: better without it" if better else "no"


def world_first(results: Results) -> Finding:
    claim = "The first linear model of this quality in the world"
    return Finding(claim, "no measurement on one model can show this; other linear models were not run", OPEN)


def pillar_findings(results: Results) -> list[Finding]:
    rows = (numbers_of(results, "pillars") or {"pillars": []})["pillars"]
    return [
        Finding(
            f"Pillar, {row['pillar']}: {row['statement']}", f"p = {row['p']:.2g}", HOLDS if row["passes"] else FAILS
        )
        for row in rows
    ]


CLAIMS: tuple[Callable[[Results], Finding], ...] = (
    pearson, memory, speed, million, linear, short_speed, memory_8k, components, world_first,
)  # fmt: skip


def findings(results: Results) -> list[Finding]:
    """The table of claims. results: result files by part, at least one."""
    return [*(claim(results) for claim in CLAIMS), *pillar_findings(results)]


def weaknesses(results: Results) -> list[str]:
    """What the model is not good at, each with its numbers, where the numbers say so."""
    ours = model_name(results)
    return [line for find in (_sts, _scaling, _retention, _probes, _retrieval, _recall, _babi, _ablation, _pillars)
            for line in find(results, ours)]  # fmt: skip


def _sts(results: Results, ours: str) -> list[str]:
    lines = []
    for name, found in (numbers_of(results, "sts") or {"sets": {}})["sets"].items():
        for other, row in found["differences"].items():
            if row["pearson"]["interval"][1] < 0:
                shown = with_interval(row["pearson"]["difference"], row["pearson"]["interval"], 4)
                lines.append(f"Similarity on {name} is below {other}: Pearson differs by {shown}.")
        ranges = [r for r in found["models"][ours]["ranges"] if r["pearson"] is not None]
        low = min(ranges, key=lambda r: r["pearson"]) if ranges else None
        if low and low["pearson"] < HARDLY:
            lines.append(
                f"Within human scores of {low['from']:.0f} to {low['to']:.0f} on {name} its similarities hardly follow "
                f"people: Pearson {low['pearson']:.2f}."
            )
    return lines


def _scaling(results: Results, ours: str) -> list[str]:
    ratios = (numbers_of(results, "scaling") or {"speed_ratio": []})["speed_ratio"]
    slower = [row for row in ratios if row["ratio"] < 0.995]  # what is written as 1.00 is no difference
    return [f"Slower than {r['baseline']} at {r['tokens']:,} tokens: {r['ratio']:.2f}x its speed." for r in slower]


def _retention(results: Results, ours: str) -> list[str]:
    numbers = numbers_of(results, "long_context")
    if not numbers:
        return []
    rows = [row for row in numbers["retention"]["rows"] if row["memory"] == "both"]
    lost = next((row for row in rows if row["found"]["mean"] < 0.5), None)
    gone = next((row for row in rows if row["p"] >= 0.05), None)
    lines = []
    if lost:
        shown = f"{lost['found']['mean']:.0%} of facts found"
        lines.append(f"Its memories lose single facts within {lost['lag']:,} tokens: {shown}.")
    if gone:
        lines.append(f"After {gone['lag']:,} tokens nothing of a fact can be shown in them (p = {gone['p']:.2g}).")
    return lines


def _probes(results: Results, ours: str) -> list[str]:
    rows = (numbers_of(results, "long_context") or {"probes": {"rows": []}})["probes"]["rows"]
    own = {(row["probe"], row["tokens"]): row["mean"] for row in rows if row["model"] == ours}
    return [
        f"Lexical probe {row['probe']} at {row['tokens']:,} tokens: {own[row['probe'], row['tokens']]:.2f} against "
        f"{row['mean']:.2f} of BM25."
        for row in rows
        if row["model"] == "BM25" and row["mean"] > own[row["probe"], row["tokens"]]
    ]


def _retrieval(results: Results, ours: str) -> list[str]:
    lines = []
    for name, found in (numbers_of(results, "retrieval") or {"sets": {}})["sets"].items():
        for other, row in found["differences"].items():
            if row["interval"][1] < 0:
                shown = with_interval(row["mean"], row["interval"])
                lines.append(f"Long documents ({name}): nDCG@10 differs from {other} by {shown}.")
    return lines


def _recall(results: Results, ours: str) -> list[str]:
    rows = [r for r in (numbers_of(results, "recall") or {"rows": []})["rows"] if not r["overwrites"]]
    cases: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        cases.setdefault((row["through"], row["keys"], row["pairs"]), {})[row["rule"]] = row
    lines = [
        f"Keys written once, {through}, {keys} keys, {pairs} pairs: the delta rule recalls "
        f"{found['delta rule']['mean']:.0%}, additive memory {found['additive']['mean']:.0%}."
        for (through, keys, pairs), found in cases.items()
        if found["delta rule"]["interval"][1] < found["additive"]["interval"][0]
    ]
    own = [found["delta rule"] for (through, keys, _), found in cases.items() if (through, keys) == TRAINED]
    low = next((row for row in own if row["mean"] < 0.5), None)
    if low:
        lines.append(
            f"With its trained decays a head of 32 x 32 recalls {low['mean']:.0%} of {low['pairs']} random pairs."
        )
    return lines


def _babi(results: Results, ours: str) -> list[str]:
    rows = (numbers_of(results, "babi") or {"rows": []})["rows"]
    by_task: dict[int, dict[str, Any]] = {}
    for row in rows:
        by_task.setdefault(row["task"], {})[row["model"]] = row
    return [
        f"bAbI task {task} ({models[ours]['name']}): a probe on its embedding, {models[ours]['mean']:.2f}, is not "
        f"better than on a bag of tokens, {models['bag of tokens']['mean']:.2f}."
        for task, models in by_task.items()
        if models[ours]["interval"][0] <= models["bag of tokens"]["interval"][1]
    ]


def _ablation(results: Results, ours: str) -> list[str]:
    lines = []
    for part, how in (("ablation_retrained", "trained without it"), ("ablation", "switched off in the trained model")):
        rows = (numbers_of(results, part) or {"rows": []})["rows"][1:]
        lines += [
            f"Component {row['ablation']}, {how}: STS-B dev {row['stsb_dev_difference']:+.4f}, long texts "
            f"{row['long_text_difference']:+.3f}. Contributes: {contribution(row)}."
            for row in rows
            if contribution(row) != "yes"
        ]
    return lines


def _pillars(results: Results, ours: str) -> list[str]:
    rows = (numbers_of(results, "pillars") or {"pillars": []})["pillars"]
    return [f"Fails the pillar {row['pillar']} (p = {row['p']:.2g})." for row in rows if not row["passes"]]
