"""bAbI as a linear probe: can the answer be read off the embedding of story and question?"""

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ...scoring.statistics import proportion
from ..data import read_babi
from ..models import BagOfTokens

NAMES = {
    1: "one supporting fact",
    2: "two supporting facts",
    3: "three supporting facts",
    15: "deduction: A -> B, B -> C",
}


def run(context) -> dict[str, Any]:
    """Accuracy of a logistic regression on frozen embeddings, for each task and model, beside the commonest answer.

    Null hypothesis for each task: the embedding answers no better than that of a bag of tokens, which knows no order
    (their 95 % intervals overlap).
    """
    path, settings = context.data.path("babi"), context.settings
    rows = []
    for task in settings.babi_tasks:
        context.say(f"bAbI task {task}")
        train, test = (list(read_babi(path, task, split))[: settings.babi_questions] for split in ("train", "test"))
        texts = [f"{story} {question}" for story, question, _ in train + test]
        answers = np.array([answer for *_, answer in train + test])
        encoders = [*context.encoders, BagOfTokens(context.model, texts[: len(train)])]
        for encoder in encoders:
            accuracy = probe_accuracy(encoder.encode(texts), answers, len(train))
            rows.append({"task": task, "name": NAMES.get(task, ""), "model": encoder.name, **accuracy})
        kinds, counts = np.unique(answers[: len(train)], return_counts=True)
        common = answers[len(train) :] == kinds[counts.argmax()]
        rows.append({"task": task, "name": NAMES.get(task, ""), "model": "commonest answer",
                     **proportion(common.sum(), len(common))})  # fmt: skip
    return {"rows": rows, "questions": settings.babi_questions}


def probe_accuracy(embeddings: np.ndarray, answers: np.ndarray, train: int) -> dict[str, Any]:
    """Accuracy with interval on the rows behind the first `train`, of a probe fitted on those."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    probe.fit(embeddings[:train], answers[:train])
    right = probe.predict(embeddings[train:]) == answers[train:]
    return proportion(right.sum(), len(right))
