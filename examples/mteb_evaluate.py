"""MTEB, offline: the handbook as a retrieval task; with LAM_DATA_DIR also STSBenchmark and Cranfield.

    LAM_DATA_DIR=DIR python examples/mteb_evaluate.py [MODEL]

MODEL is a folder (default: LAM-base-v1). DIR holds sts/stsb_test.jsonl.gz and retrieval/cranfield in the BEIR layout.
"""

import os
from pathlib import Path

import mteb
from handbook import model_from_arguments, read_passages, read_questions
from mteb.abstasks import AbsTask

from lam_transformers.evaluation.mteb import LocalRetrieval, beir_task, lam_meta, stsbenchmark


def handbook_task() -> LocalRetrieval:
    corpus = {f"p{i}": passage for i, passage in enumerate(read_passages())}
    ids = {passage: i for i, passage in corpus.items()}
    questions = read_questions()
    queries = {q["id"]: q["question"] for q in questions}
    return LocalRetrieval("Handbook", corpus, queries, {q["id"]: {ids[q["passage"]]: 1} for q in questions})


def data_tasks(data: Path) -> list[AbsTask]:
    sts = stsbenchmark(data / "sts/stsb_test.jsonl.gz")
    return [sts, beir_task("Cranfield", data / "retrieval/cranfield")]


def evaluate(model: str, tasks: list[AbsTask]) -> dict[str, dict[str, float]]:
    """Scores by task; nothing is read from or written to MTEB's cache of results."""
    result = mteb.evaluate(lam_meta(model), tasks, cache=None, co2_tracker=False, show_progress_bar=False)
    return {task.task_name: task.scores["test"][0] for task in result.task_results}


def main() -> None:
    tasks: list[AbsTask] = [handbook_task()]
    if "LAM_DATA_DIR" in os.environ:
        tasks += data_tasks(Path(os.environ["LAM_DATA_DIR"]))
    for name, scores in evaluate(model_from_arguments(), tasks).items():
        names = ("cosine_pearson", "cosine_spearman", "ndcg_at_10", "recall_at_5")
        print(name, *(f"{n} {scores[n]:.4f}" for n in names if n in scores), sep="  ")


if __name__ == "__main__":
    main()
