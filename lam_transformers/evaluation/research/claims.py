"""The claims judged here are those of the documents of an earlier LAM, each held against what was measured."""

from collections.abc import Callable
from dataclasses import dataclass

from ...io.results import Numbers, Results, model_name, numbers_of
from ..blocks import Section, Table, with_interval
from ..parts import scaling, sts
from ..parts.scaling import CLAIMED_MEMORY_MB, CLAIMED_SPEED
from . import ablation, pillars

HOLDS = "holds"
PARTLY = "holds in part"
FAILS = "does not hold"
OPEN = "not measured"
CLAIMED_PEARSON = 0.836
CLAIMED_8K_MB = 12
COMPARABLE = 0.8  # of the baseline's speed
LINEAR = 1.15  # largest exponent of time that counts as linear
MEGABYTES = 4 / 2**20  # of a float32 parameter


@dataclass(frozen=True)
class Finding:
    """A row of the table of claims."""

    claim: str
    measured: str
    verdict: str


def scaling_rows(results: Results) -> list[Numbers]:
    """The rows of the LAM that were measured."""
    numbers = numbers_of(results, scaling.PART.name)
    rows = numbers["models"][model_name(results)]["rows"] if numbers else []
    return [row for row in rows if "seconds" in row]


def speed_ratios(results: Results) -> list[Numbers]:
    """The LAM's speed over each baseline's, at each length that both read."""
    numbers = numbers_of(results, scaling.PART.name)
    return list(numbers["speed_ratio"]) if numbers else []


def weights_mb(results: Results) -> float:
    """The weights of the model in float32."""
    parameters: int = next(iter(results.values()))["model"]["parameters"]
    return parameters * MEGABYTES


def pearson(results: Results) -> Finding:
    claim = f"STS-B Pearson correlation of {CLAIMED_PEARSON}"
    numbers = numbers_of(results, sts.PART.name)
    sets = {n: x for n, x in (numbers or {"sets": {}})["sets"].items() if n in ("stsb_dev", "stsb_test")}
    if not sets:
        return Finding(claim, "STS-B was not there", OPEN)
    ours = {name: x["models"][model_name(results)] for name, x in sets.items()}
    shown = ", ".join(f"{n[5:]} {with_interval(x['pearson'], x['pearson_interval'])}" for n, x in ours.items())
    reached = [x["pearson"] >= CLAIMED_PEARSON for x in ours.values()]
    if len(ours) < 2:
        return Finding(claim, shown, PARTLY if all(reached) else FAILS)
    return Finding(claim, shown, HOLDS if all(reached) else PARTLY if any(reached) else FAILS)


def memory(results: Results) -> Finding:
    claim = "50 to 180 MB of memory from 128 tokens to a million"
    rows = scaling_rows(results)
    if not rows:
        return Finding(claim, "scaling was not measured", OPEN)
    weights = weights_mb(results)
    last = rows[-1]
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
    ratios = speed_ratios(results)
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
    rows = [row for row in speed_ratios(results) if row["tokens"] <= 512]
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
    every = results[scaling.PART.name]["numbers"]["models"][model_name(results)]["rows"]
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
    numbers = numbers_of(results, scaling.PART.name)
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
    ways = ((ablation.RETRAINED, "trained without it"), (ablation.PART, "switched off, not trained again"))
    for part, how in ways:
        if (numbers := numbers_of(results, part.name)) is None:
            continue
        rows = numbers["rows"][1:]
        good = [row for row in rows if ablation.contributes(row)]
        names = ", ".join(row["ablation"] for row in good) or "none"
        rest = ", ".join(row["ablation"] for row in rows if row not in good) or "none"
        shown = f"{how}, worse on STS-B dev or long texts: {names}; no such effect: {rest}"
        if part is ablation.PART:
            return Finding(claim, f"{shown}; retrained ablations were not run", PARTLY if good else FAILS)
        return Finding(claim, shown, HOLDS if len(good) == len(rows) else PARTLY if good else FAILS)
    return Finding(claim, "no ablation was run", OPEN)


def world_first(results: Results) -> Finding:
    claim = "The first linear model of this quality in the world"
    return Finding(claim, "no measurement on one model can show this; other linear models were not run", OPEN)


def pillar_findings(results: Results) -> list[Finding]:
    rows = (numbers_of(results, pillars.PART.name) or {"pillars": []})["pillars"]
    return [
        Finding(
            f"Pillar, {row['pillar']}: {row['statement']}", f"p = {row['p']:.2g}", HOLDS if row["passes"] else FAILS
        )
        for row in rows
    ]


CLAIMS: tuple[Callable[[Results], Finding], ...] = (
    pearson,
    memory,
    speed,
    million,
    linear,
    short_speed,
    memory_8k,
    components,
    world_first,
)


def findings(results: Results) -> list[Finding]:
    """The table of claims. results: result files by part, at least one."""
    return [*(claim(results) for claim in CLAIMS), *pillar_findings(results)]


def section(results: Results) -> Section:
    """The table of claims."""
    rows = [(finding.claim, finding.measured, finding.verdict) for finding in findings(results)]
    return Section("Claims of the documents", [Table(("claim in the documents", "measured", "verdict"), rows)])
