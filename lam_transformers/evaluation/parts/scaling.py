"""Time and memory against the length of a text, each point in a process of its own.

A point reads token ids into one embedding; tokenising is not part of it. LAM reads in segments with carried state and a
running mean, as `encode` does with a long text. Softmax baselines read all tokens at once (SDPA), their position table
over and over.
"""

import json
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np

from ...scoring.statistics import power_fit

LEAST_SECONDS = 1.0  # a point is repeated until it has run so long
MOST_REPEATS = 15
FIT_FROM = 1_000  # tokens: below, fixed costs decide


class PeakMemory:
    """The largest resident set of this process in a `with` block, sampled every 2 ms, in MB."""

    def __enter__(self) -> "PeakMemory":
        import psutil

        self._process, self._running = psutil.Process(), True
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

    def __exit__(self, *error) -> None:
        self._running = False
        self._thread.join()
        self.peak = max(self.peak, self._now())


def measure(name: str, tokens: int) -> dict[str, Any]:
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
        "tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds, "repeats": len(times),
        "loaded_mb": memory.before, "peak_mb": memory.peak, "above_loaded_mb": memory.peak - memory.before,
        "finite": bool(np.isfinite(embedding).all()),
    }  # fmt: skip


def measure_apart(name: str, tokens: int, timeout: float = 1_800) -> dict[str, Any]:
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
    return json.loads(done.stdout.splitlines()[-1])


def run(context) -> dict[str, Any]:
    """Rows by model, and the fitted exponents of time (tokens >= 1,000) with their 95 % intervals.

    Null hypothesis of linear scaling: LAM's exponent of time is 1.
    """
    settings = context.settings
    models: dict[str, Any] = {}
    for encoder in context.encoders:
        rows = []
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


def _ratios(models: dict[str, Any], context) -> list[dict[str, Any]]:
    """Seconds of each baseline over LAM's at the lengths that both ran: above 1, LAM is faster."""
    ours = {row["tokens"]: row["seconds"] for row in models[context.model.name]["rows"] if "seconds" in row}
    return [
        {"baseline": encoder.name, "tokens": row["tokens"], "ratio": row["seconds"] / ours[row["tokens"]]}
        for encoder in context.baselines
        for row in models[encoder.name]["rows"]
        if "seconds" in row and row["tokens"] in ours
    ]


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
