"""bAbI as a linear probe: can the answer be read off the embedding of story and question?"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ...io.results import Numbers, Record, Results, model_name, numbers_of
from ...scoring.statistics import proportion
from .. import drawing
from ..blocks import Figure, Section, Table, Text, with_interval
from ..data import read_babi
from ..models import BagOfTokens, MeasuredModel
from ..part import Context, Part

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

NAMES = {
    1: "one supporting fact",
    2: "two supporting facts",
    3: "three supporting facts",
    15: "deduction: A -> B, B -> C",
}


@dataclass(frozen=True)
class BabiSettings:
    """Which tasks, and how many questions of each split."""

    babi_tasks: tuple[int, ...] = (1, 2, 3, 15)
    babi_questions: int = 500


def run(context: Context) -> Numbers:
    """Accuracy of a logistic regression on frozen embeddings, for each task and model, beside the commonest answer.

    Null hypothesis for each task: the embedding answers no better than that of a bag of tokens, which knows no order
    (their 95 % intervals overlap).
    """
    path = context.data.path("babi")
    settings = context.settings.of(BabiSettings)
    rows: list[Numbers] = []
    for task in settings.babi_tasks:
        context.say(f"bAbI task {task}")
        train, test = (list(read_babi(path, task, split))[: settings.babi_questions] for split in ("train", "test"))
        texts = [f"{story} {question}" for story, question, _ in train + test]
        answers = np.array([answer for *_, answer in train + test])
        bag = BagOfTokens(context.model, texts[: len(train)])
        encoders: list[MeasuredModel | BagOfTokens] = [*context.encoders, bag]
        for encoder in encoders:
            accuracy = probe_accuracy(encoder.encode(texts), answers, len(train))
            rows.append({"task": task, "name": NAMES.get(task, ""), "model": encoder.name, **accuracy})
        kinds, counts = np.unique(answers[: len(train)], return_counts=True)
        common = answers[len(train) :] == kinds[counts.argmax()]
        share = proportion(common.sum(), len(common))
        rows.append({"task": task, "name": NAMES.get(task, ""), "model": "commonest answer", **share})
    return {"rows": rows, "questions": settings.babi_questions}


def probe_accuracy(embeddings: np.ndarray, answers: np.ndarray, train: int) -> Numbers:
    """Accuracy with interval on the rows after the first `train`, of a probe fitted on those."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    probe.fit(embeddings[:train], answers[:train])
    right = probe.predict(embeddings[train:]) == answers[train:]
    return proportion(right.sum(), len(right))


def section(record: Record) -> Section:
    """Accuracy of each task and model."""
    rows = [
        (str(row["task"]), row["name"], row["model"], with_interval(row["mean"], row["interval"], 2))
        for row in record["numbers"]["rows"]
    ]
    return Section(
        "bAbI",
        [
            Text("Null hypothesis: the embedding answers no better than a bag of tokens, which knows no order."),
            Table(("task", "name", "model", "accuracy of a linear probe"), rows),
            Figure("babi", "Accuracy by task."),
        ],
    )


def weaknesses(results: Results) -> list[str]:
    """Tasks on which the embedding is not better than a bag of tokens."""
    ours = model_name(results)
    by_task: dict[int, dict[str, Any]] = {}
    for row in (numbers_of(results, PART.name) or {"rows": []})["rows"]:
        by_task.setdefault(row["task"], {})[row["model"]] = row
    return [
        f"bAbI task {task} ({models[ours]['name']}): a probe on its embedding, {models[ours]['mean']:.2f}, is not "
        f"better than on a bag of tokens, {models['bag of tokens']['mean']:.2f}."
        for task, models in by_task.items()
        if models[ours]["interval"][0] <= models["bag of tokens"]["interval"][1]
    ]


def draw(numbers: Numbers, model: str) -> "Drawing":
    """Accuracy with intervals, the models side by side for each task."""
    rows = numbers["rows"]
    tasks = sorted({row["task"] for row in rows})
    models = list(dict.fromkeys(row["model"] for row in rows))
    title = "bAbI: answers read off the embedding"
    figure, axes = drawing.new_axes(title, "task", "accuracy of a linear probe")
    width = 0.8 / len(models)
    for i, name in enumerate(models):
        own = [next(row for row in rows if row["task"] == task and row["model"] == name) for task in tasks]
        places = np.arange(len(tasks)) + (i - (len(models) - 1) / 2) * width
        errors = np.abs([[row["mean"] - row["interval"][k] for row in own] for k in (0, 1)])
        means = [row["mean"] for row in own]
        axes.bar(places, means, width, yerr=errors, color=drawing.COLOURS[i], label=name, error_kw={"linewidth": 0.8})
    axes.set_xticks(range(len(tasks)), [str(task) for task in tasks])
    axes.set_ylim(0, 1)
    axes.legend()
    return figure


PART = Part(
    name="babi",
    run=run,
    section=section,
    weaknesses=weaknesses,
    figures={"babi": draw},
    settings=BabiSettings,
    quick=BabiSettings(babi_tasks=(1, 15), babi_questions=100),
)
