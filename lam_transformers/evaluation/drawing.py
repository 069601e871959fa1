"""The figures of a report, each with one message, drawn from the result files alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

COLOURS = ("#1f5fa8", "#d1602c", "#7a7a7a", "#3f8f5f", "#8a4fa3", "#b58900", "#c23b6b", "#2aa198", "#555555")
Numbers = dict[str, Any]


def _axes(title: str, x: str, y: str, size=(6.4, 3.8)):
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def _bars(axes, labels: list[str], rows: list[Numbers]) -> None:
    """Horizontal bars with intervals; the first row stands on top. rows: {"mean", "interval"}."""
    places = np.arange(len(rows))[::-1]
    means = np.array([row["mean"] for row in rows])
    low, high = np.array([row["interval"] for row in rows]).T
    errors = np.abs([means - low, high - means])
    colours = [COLOURS[0] if i == 0 else COLOURS[2] for i in range(len(rows))]
    axes.barh(places, means, xerr=errors, color=colours, height=0.65, error_kw={"linewidth": 1, "capsize": 2})
    axes.set_yticks(places, labels)
    axes.grid(axis="y", visible=False)
    for place, mean, top in zip(places, means, high, strict=True):
        axes.text(max(top, mean), place, f" {mean:.3f}", va="center", fontsize=8)


def _lines(axes, series: dict[str, tuple[list, list]], model: str, legend: bool = True) -> None:
    """Lines with a legend; the model's are wider and so stay visible under one that covers them."""
    for i, (name, (x, y)) in enumerate(series.items()):
        width, size = (3.4, 6.0) if name.startswith(model) else (1.6, 3.5)
        axes.plot(x, y, marker="o", markersize=size, linewidth=width, color=COLOURS[i % len(COLOURS)], label=name)
    if legend:
        axes.legend(fontsize=7.5, frameon=False)


def sts(numbers: Numbers, model: str):
    name = next((n for n in ("stsb_test", "stsb_dev") if n in numbers["sets"]), None)
    if name is None:
        return None
    found = numbers["sets"][name]["models"]
    figure, axes = _axes(
        f"Agreement with human similarity ({name})", "Pearson correlation, 95 % interval", "", (6.4, 2.6)
    )
    rows = [{"mean": x["pearson"], "interval": x["pearson_interval"]} for x in found.values()]
    _bars(axes, list(found), rows)
    axes.set_xlim(min(0.5, *(row["interval"][0] for row in rows)), 1)
    return figure


def sts_ranges(numbers: Numbers, model: str):
    name = next((n for n in ("stsb_test", "stsb_dev") if n in numbers["sets"]), None)
    if name is None:
        return None
    figure, axes = _axes(f"Where similarities agree with people ({name})", "human score", "Pearson within the range")
    series = {}
    for encoder, found in numbers["sets"][name]["models"].items():
        ranges = [r for r in found["ranges"] if r["pearson"] is not None]
        series[encoder] = ([(r["from"] + r["to"]) / 2 for r in ranges], [r["pearson"] for r in ranges])
    _lines(axes, series, model)
    axes.axhline(0, color="black", linewidth=0.6)
    return figure


def _scaling(numbers: Numbers, model: str, key: str, title: str, y: str):
    figure, axes = _axes(title, "tokens", y)
    series = {}
    for encoder, found in numbers["models"].items():
        rows = [row for row in found["rows"] if key in row and row[key] > 0]
        series[encoder] = ([row["tokens"] for row in rows], [row[key] for row in rows])
    _lines(axes, series, model)
    axes.set_xscale("log")
    axes.set_yscale("log")
    return figure


def scaling_time(numbers: Numbers, model: str):
    return _scaling(numbers, model, "seconds", "Time to embed one text", "seconds")


def scaling_memory(numbers: Numbers, model: str):
    return _scaling(numbers, model, "above_loaded_mb", "Memory that reading needs beside the loaded model", "MB")


def sensitivity(numbers: Numbers, model: str):
    rows = numbers["sensitivity"]["rows"]
    figure, axes = _axes(
        "One changed sentence moves the embedding", "depth of the sentence in the text", "cosine distance moved",
        (6.4, 4.4),
    )  # fmt: skip
    series: dict[str, tuple[list, list]] = {}
    for row in rows:
        x, y = series.setdefault(f"{row['model']}, {row['tokens']:,} tokens", ([], []))
        x.append(row["depth"])
        y.append(max(row["distance"], 1e-9))
    _lines(axes, series, model, legend=False)
    figure.legend(loc="outside lower center", ncols=2, fontsize=7.5, frameon=False)  # six lines leave no room inside
    axes.set_yscale("log")
    return figure


def retention(numbers: Numbers, model: str):
    found = numbers["retention"]
    figure, axes = _axes("The memories answer for a fact", "tokens read since the fact", "share of facts found")
    series: dict[str, tuple[list, list]] = {}
    for row in found["rows"]:
        label = {"fast": "fast memory", "slow": "slow memory", "both": "both memories"}[row["memory"]]
        x, y = series.setdefault(label, ([], []))
        x.append(row["lag"])
        y.append(row["found"]["mean"])
        if row["memory"] == "both":
            x, y = series.setdefault("text without the fact", ([], []))
            x.append(row["lag"])
            y.append(row["control_found"]["mean"])
    _lines(axes, series, model)
    axes.axhline(found["chance"], color="black", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.05)
    return figure


def lexical_probes(numbers: Numbers, model: str):
    rows = [row for row in numbers["probes"]["rows"] if row["probe"] == "passkey"]
    figure, axes = _axes("Lexical probe: the document with the pass key", "tokens of a document", "found first (share)")
    series: dict[str, tuple[list, list]] = {}
    for row in rows:
        x, y = series.setdefault(row["model"], ([], []))
        x.append(row["tokens"])
        y.append(row["mean"])
    _lines(axes, series, model)
    axes.axhline(numbers["probes"]["chance"], color="black", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_ylim(-0.02, 1.05)
    return figure


def long_retrieval(numbers: Numbers, model: str):
    sets = numbers["sets"]
    if not sets:
        return None
    height = sum(len(found["models"]) for found in sets.values()) * 0.27 + 0.8 * len(sets)
    figure, all_axes = plt.subplots(len(sets), 1, figsize=(6.4, height), layout="constrained", squeeze=False)
    for axes, (name, found) in zip(all_axes[:, 0], sets.items(), strict=True):
        axes.set_title(f"Finding long documents:\n{name}", fontsize=11, loc="left")
        ranked = sorted(found["models"].items(), key=lambda item: (item[0] != model, -item[1]["mean"]))
        _bars(axes, [label for label, _ in ranked], [row for _, row in ranked])
        axes.set_xlabel("nDCG@10, 95 % interval")
        axes.set_xlim(0, 1.08)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def recall(numbers: Numbers, model: str):
    figure, axes = _axes("Keys that were written twice return the newer value", "pairs", "share of keys recalled")
    series: dict[str, tuple[list, list]] = {}
    for row in numbers["rows"]:
        if row["keys"] == "random" and row["overwrites"]:
            x, y = series.setdefault(f"{row['rule']}, {row['through']}", ([], []))
            x.append(row["pairs"])
            y.append(row["mean"])
    _lines(axes, series, model)
    axes.axvline(numbers["width"], color="black", linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_ylim(0, 1.05)
    return figure


def babi(numbers: Numbers, model: str):
    rows, tasks = numbers["rows"], sorted({row["task"] for row in numbers["rows"]})
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = _axes("bAbI: answers read off the embedding", "task", "accuracy of a linear probe")
    width = 0.8 / len(models)
    for i, name in enumerate(models):
        own = [next(row for row in rows if row["task"] == task and row["model"] == name) for task in tasks]
        places = np.arange(len(tasks)) + (i - (len(models) - 1) / 2) * width
        errors = np.abs([[row["mean"] - row["interval"][k] for row in own] for k in (0, 1)])
        axes.bar(places, [row["mean"] for row in own], width, yerr=errors, color=COLOURS[i], label=name,
                 error_kw={"linewidth": 0.8})  # fmt: skip
    axes.set_xticks(range(len(tasks)), [str(task) for task in tasks])
    axes.set_ylim(0, 1)
    axes.legend(fontsize=7.5, frameon=False)
    return figure


def _ablation(numbers: Numbers, title: str):
    rows = numbers["rows"][1:]
    figure, both = plt.subplots(1, 2, figsize=(6.4, 3.0), layout="constrained", sharey=True)
    figure.suptitle(title, fontsize=11, x=0.02, ha="left")
    places = np.arange(len(rows))[::-1]
    for axes, task, label in zip(
        both, ("stsb_dev", "long_text"), ("STS-B dev, Pearson", "long texts, nDCG@10"), strict=True
    ):
        values = np.array([row[f"{task}_difference"] for row in rows])
        low, high = np.array([row[f"{task}_interval"] for row in rows]).T
        axes.errorbar(values, places, xerr=np.abs([values - low, high - values]), fmt="o", color=COLOURS[0], capsize=2)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel(f"difference to the full model\n{label}", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="x", nbins=4)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    both[0].set_yticks(places, [row["label"] for row in rows])
    return figure


def ablation(numbers: Numbers, model: str):
    return _ablation(numbers, "Components switched off in the trained model")


def ablation_retrained(numbers: Numbers, model: str):
    return _ablation(
        numbers, f"Trained without the component ({numbers['steps']} updates, {len(numbers['seeds'])} seeds)"
    )


def _pillar(numbers: Numbers, name: str) -> Numbers | None:
    return next((row["measured"] for row in numbers["pillars"] if row["pillar"] == name), None)


def forgetting(numbers: Numbers, model: str):
    found = _pillar(numbers, "cognitive realism")
    if found is None:
        return None
    figure, axes = _axes("Forgetting curve of the memories", "1 + tokens read since the fact", "recall (margin)")
    t = np.array(found["lags"], dtype=float)
    axes.plot(1 + t, found["recall"], "o", color="black", label="measured", markersize=4)
    fine = np.geomspace(1, 1 + t.max(), 200) - 1
    curves = {
        "power": lambda a, b: a * (1 + fine) ** -b,
        "exponential": lambda a, b: a * np.exp(-b * fine),
        "logarithmic": lambda a, b: a - b * np.log1p(fine),
    }
    for i, (name, fit) in enumerate(found["fits"].items()):
        axes.plot(1 + fine, curves[name](fit["a"], fit["b"]), color=COLOURS[i], label=f"{name}, R2 {fit['r2']:.3f}")
    axes.set_xscale("log")
    axes.legend(fontsize=8, frameon=False)
    return figure


def salience(numbers: Numbers, model: str):
    found = _pillar(numbers, "salience gating")
    if found is None:
        return None
    figure, axes = _axes("Share of a token that goes to the slow memory", "inverse document frequency", "psi, mean")
    axes.plot([row["idf"] for row in found["bins"]], [row["psi"] for row in found["bins"]], "o-", color=COLOURS[0])
    return figure


# Figure -> the part whose numbers it draws, and how.
FIGURES: dict[str, tuple[str, Callable]] = {
    "sts": ("sts", sts),
    "sts_ranges": ("sts", sts_ranges),
    "scaling_time": ("scaling", scaling_time),
    "scaling_memory": ("scaling", scaling_memory),
    "sensitivity": ("long_context", sensitivity),
    "retention": ("long_context", retention),
    "lexical_probes": ("long_context", lexical_probes),
    "long_retrieval": ("retrieval", long_retrieval),
    "recall": ("recall", recall),
    "babi": ("babi", babi),
    "ablation": ("ablation", ablation),
    "ablation_retrained": ("ablation_retrained", ablation_retrained),
    "forgetting": ("pillars", forgetting),
    "salience": ("pillars", salience),
}


def draw_figures(results: dict[str, Numbers], folder: Path) -> dict[str, Path]:
    """Draw every figure whose part was measured to FOLDER/NAME.png; returns the files by name."""
    drawn = {}
    for name, (part, draw) in FIGURES.items():
        numbers = results.get(part, {}).get("numbers")
        figure = draw(numbers, results[part]["model"]["name"]) if numbers else None
        if figure is None:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        drawn[name] = folder / f"{name}.png"
        # Without metadata the same numbers give the same bytes.
        figure.savefig(drawn[name], dpi=110, metadata={"Software": None})
        plt.close(figure)
    return drawn
