"""Time and memory against length, from the result of encode_speed.py.

    python benchmarks/plot_speed.py benchmarks/results/encode_speed_float32.json docs/figures/encode_speed.png

Needs matplotlib (extra `evaluate`).
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NAMES = {"lam": "LAM-base-v1", "baseline": "all-MiniLM-L6-v2"}


def main() -> None:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    rows = json.loads(source.read_text())["numbers"]["rows"]
    lengths = {int(name): row for name, row in rows.items() if name.isdecimal()}
    figure, (time, memory) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for key, marker in (("lam", "o"), ("baseline", "s")):
        speed = {
            n: n / row[f"{key}_tokens_per_second"] for n, row in lengths.items() if f"{key}_tokens_per_second" in row
        }
        peak = {
            n: row[f"{key}_peak_mb_above_loaded"] for n, row in lengths.items() if f"{key}_peak_mb_above_loaded" in row
        }
        time.plot(list(speed), list(speed.values()), marker=marker, label=NAMES[key])
        memory.plot(list(peak), list(peak.values()), marker=marker, label=NAMES[key])
    time.set_ylabel("seconds for one text")
    memory.set_ylabel("peak memory above the loaded model, MB")
    for axes in (time, memory):
        axes.set(xscale="log", yscale="log", xlabel="tokens in the text")
        axes.grid(True, alpha=0.3)
        axes.legend()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    main()
