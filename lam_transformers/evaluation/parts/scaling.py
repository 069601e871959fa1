"""Time and memory against the length of a text, each point in a process of its own.

A point reads token ids into one embedding; tokenising is not part of it. LAM reads in segments with carried state and a
running mean, as `encode` does with a long text. Softmax baselines read all tokens at once (SDPA), and repeat their
position table.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...io.results import Numbers, Record, Results, numbers_of
from ...scoring.statistics import power_fit
from .. import drawing
from ..blocks import Block, Figure, Section, Table, Text, prose, with_interval
from ..part import Context, Part

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

LEAST_SECONDS = 1.0  # a point is repeated until it has run so long
MOST_REPEATS = 15
FIT_FROM = 1_000  # tokens: below, fixed costs decide
# The table in the documents of an earlier LAM, which the report shows beside the measured one.
TABLE_LENGTHS = (128, 1_000, 10_000, 100_000, 1_000_000)
CLAIMED_MEMORY_MB = {128: 50, 1_000_000: 180}
CLAIMED_SPEED = {128: 1, 1_000_000: 100}


@dataclass(frozen=True)
class ScalingSettings:
    """Tokens of the texts, and the longest that baselines read."""

    lengths: tuple[int, ...] = (
        128, 129, 512, 1_000, 1_024, 4_097, 8_192, 10_000, 32_768, 99_991, 100_000, 262_144, 1_000_000,
    )  # fmt: skip
    baseline_limit: int = 32_768


class PeakMemory:
    """The largest resident set of this process in a `with` block, sampled every 2 ms, in MB."""

    def __enter__(self) -> "PeakMemory":
        import psutil

        self._process = psutil.Process()
        self._running = True
        self.peak = self.before = self._now()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _now(self) -> float:
        return self._process.memory_info().rss / 2**20

    def _sample(self) -> None:
        while self._running:
            self.peak = max(self.peak, self._now())
            time.sleep(0.002)

    def __exit__(self, *error: object) -> None:
        self._running = False
        self._thread.join()
        self.peak = max(self.peak, self._now())


def measure(name: str, tokens: int) -> Numbers:
    """One point in this process: seconds (median of the repeats), memory in MB, whether the embedding is finite."""
    from ..models import load_encoder

    encoder = load_encoder(name)
    words = len(encoder.tokenizer)
    ids = np.random.default_rng(0).integers(words // 30, words, tokens).tolist()  # the first ids are no words
    times: list[float] = []
    with PeakMemory() as memory:
        encoder.embed_ids([ids[:128]])
        while not times or (sum(times) < LEAST_SECONDS and len(times) < MOST_REPEATS):
            began = time.perf_counter()
            embedding = encoder.embed_ids([ids])
            times.append(time.perf_counter() - began)
    seconds = float(np.median(times))
    return {
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "repeats": len(times),
        "loaded_mb": memory.before,
        "peak_mb": memory.peak,
        "above_loaded_mb": memory.peak - memory.before,
        "finite": bool(np.isfinite(embedding).all()),
    }


def measure_apart(name: str, tokens: int, timeout: float = 1_800) -> Numbers:
    """`measure` in a fresh process; a row {"tokens", "failed"} that says why if that did not work."""
    command = [sys.executable, "-m", "lam_transformers.evaluation.parts.scaling", name, str(tokens)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"tokens": tokens, "failed": f"not finished after {timeout:,.0f} s"}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        reason = f"killed by signal {-done.returncode}, probably for memory" if done.returncode < 0 else last[0]
        return {"tokens": tokens, "failed": reason}
    row: Numbers = json.loads(done.stdout.splitlines()[-1])
    return row


def run(context: Context) -> Numbers:
    """Rows by model, and the fitted exponents of time (tokens >= 1,000) with their 95 % intervals.

    Null hypothesis of linear scaling: LAM's exponent of time is 1.
    """
    settings = context.settings.of(ScalingSettings)
    models: dict[str, Any] = {}
    for encoder in context.encoders:
        rows: list[Numbers] = []
        for tokens in settings.lengths:
            if encoder is not context.model and tokens > settings.baseline_limit:
                rows.append({"tokens": tokens, "failed": f"baselines stop at {settings.baseline_limit:,} tokens"})
                continue
            row = measure_apart(context.paths[encoder.name], tokens)
            shown = row.get("failed") or f"{row['seconds']:.3f} s, {row['above_loaded_mb']:.0f} MB above the model's"
            context.say(f"{encoder.name}, {tokens:,} tokens: {shown}")
            rows.append(row)
        if any(row.get("finite") is False for row in rows):
            raise FloatingPointError(f"{encoder.name} returns NaN or infinity: {rows}")
        done = [row for row in rows if "seconds" in row]
        if encoder is context.model and not done:
            raise RuntimeError(f"{encoder.name} could not be measured at any length: {rows}")
        fitted = [row for row in done if row["tokens"] >= FIT_FROM]
        fit = None
        if len(fitted) >= 3:
            fit = power_fit([row["tokens"] for row in fitted], [row["seconds"] for row in fitted])
        models[encoder.name] = {"rows": rows, "time_fit": fit}
    return {"models": models, "speed_ratio": _ratios(models, context)}


def _ratios(models: Mapping[str, Any], context: Context) -> list[Numbers]:
    """Seconds of each baseline over LAM's at the lengths that both ran: above 1, LAM is faster."""
    ours = {row["tokens"]: row["seconds"] for row in models[context.model.name]["rows"] if "seconds" in row}
    return [
        {"baseline": encoder.name, "tokens": row["tokens"], "ratio": row["seconds"] / ours[row["tokens"]]}
        for encoder in context.baselines
        for row in models[encoder.name]["rows"]
        if "seconds" in row and row["tokens"] in ours
    ]


def section(record: Record) -> Section:
    """Time and memory by length, the fitted exponents, and the documents' table beside the measured one."""
    numbers = record["numbers"]
    rows = [_row(model, row) for model, measured in numbers["models"].items() for row in measured["rows"]]
    fits = [_fit_row(model, x["time_fit"]) for model, x in numbers["models"].items() if x["time_fit"]]
    fit_header = ("model", "exponent b", "from", "to", "points")
    blocks: list[Block] = [
        prose(
            """
            Each point runs in a process of its own, from token ids to one embedding. Peak memory is the sampled
            resident set; "beside the model" is what it rises above the loaded model.
            """
        ),
        Table(("model", "tokens", "seconds", "tokens/s", "MB beside the model", "MB of the process"), rows),
        Text("Fit of seconds = a tokens^b; null hypothesis of linear scaling: b = 1."),
        Table(fit_header, fits),
        Text("The documents' table beside the measured one (memory of the whole process; speed against the baseline)."),
        _documents_table(numbers, record["model"]["name"]),
        Figure("scaling_time", "Seconds for one text; a slope of 1 is linear."),
        Figure("scaling_memory", "Memory beside the loaded model."),
    ]
    return Section("Linear scaling", blocks)


def _row(model: str, row: Numbers) -> tuple[str, ...]:
    if "failed" in row:
        return (model, f"{row['tokens']:,}", row["failed"], "", "", "")
    return (
        model,
        f"{row['tokens']:,}",
        f"{row['seconds']:.3f}",
        f"{row['tokens_per_second']:,.0f}",
        f"{row['above_loaded_mb']:.0f}",
        f"{row['peak_mb']:.0f}",
    )


def _fit_row(model: str, fit: Numbers) -> tuple[str, ...]:
    exponent = with_interval(fit["exponent"], fit["interval"])
    return (model, exponent, f"{fit['from']:,.0f}", f"{fit['to']:,.0f}", str(fit["points"]))


def _documents_table(numbers: Numbers, ours: str) -> Table:
    """What the documents of an earlier LAM say of memory and speed, beside what was measured."""
    by_length = {row["tokens"]: row for row in numbers["models"][ours]["rows"] if "seconds" in row}
    best: dict[int, float] = {}
    for ratio in numbers["speed_ratio"]:
        best[ratio["tokens"]] = max(best.get(ratio["tokens"], 0.0), ratio["ratio"])
    rows = [
        (
            f"{tokens:,}",
            f"{CLAIMED_MEMORY_MB[tokens]} MB" if tokens in CLAIMED_MEMORY_MB else "not quoted",
            f"{by_length[tokens]['peak_mb']:.0f} MB" if tokens in by_length else "",
            f"{CLAIMED_SPEED[tokens]}x" if tokens in CLAIMED_SPEED else "not quoted",
            f"{best[tokens]:.2f}x" if tokens in best else "",
        )
        for tokens in TABLE_LENGTHS
    ]
    return Table(("tokens", "memory, documents", "memory, measured", "speed, documents", "speed, measured"), rows)


def weaknesses(results: Results) -> list[str]:
    """Lengths at which a baseline is faster."""
    ratios = (numbers_of(results, PART.name) or {"speed_ratio": []})["speed_ratio"]
    slower = [row for row in ratios if row["ratio"] < 0.995]  # what is written as 1.00 is no difference
    return [f"Slower than {r['baseline']} at {r['tokens']:,} tokens: {r['ratio']:.2f}x its speed." for r in slower]


def _draw(numbers: Numbers, model: str, key: str, title: str, y: str) -> "Drawing":
    figure, axes = drawing.new_axes(title, "tokens", y)
    series: drawing.Series = {}
    for encoder, measured in numbers["models"].items():
        rows = [row for row in measured["rows"] if key in row and row[key] > 0]
        series[encoder] = ([row["tokens"] for row in rows], [row[key] for row in rows])
    drawing.lines(axes, series, model)
    axes.set_xscale("log")
    axes.set_yscale("log")
    return figure


def draw_time(numbers: Numbers, model: str) -> "Drawing":
    """Seconds against tokens."""
    return _draw(numbers, model, "seconds", "Time to embed one text", "seconds")


def draw_memory(numbers: Numbers, model: str) -> "Drawing":
    """Memory above the loaded model against tokens."""
    return _draw(numbers, model, "above_loaded_mb", "Memory that reading needs beside the loaded model", "MB")


PART = Part(
    name="scaling",
    run=run,
    section=section,
    weaknesses=weaknesses,
    figures={"scaling_time": draw_time, "scaling_memory": draw_memory},
    settings=ScalingSettings,
    quick=ScalingSettings(lengths=(128, 1_000, 2_049, 4_097), baseline_limit=2_049),
)

if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
