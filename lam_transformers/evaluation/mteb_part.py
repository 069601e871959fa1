"""STS tasks through the mteb package: STS-B from local data or the Hub, the others from the Hub."""

from typing import Any

from .data import MissingData

STS_TASKS = ("STSBenchmark", "SICK-R", "BIOSSES", "STS12", "STS13", "STS14", "STS15", "STS16")


def run(context) -> dict[str, Any]:
    """Pearson and Spearman correlation of the cosine on the STS tasks of MTEB, as fractions of 1."""
    try:
        import mteb
        from mteb.abstasks import AbsTask

        from .mteb import lam_meta, stsbenchmark
    except ImportError as error:
        raise MissingData("the package mteb", f"Install lam-transformers[mteb] ({error}).") from error
    tasks: list[AbsTask] = []
    for name in STS_TASKS:
        with context.may_lack():
            tasks.append(stsbenchmark(context.data.path("stsb_test")) if name == "STSBenchmark" else _from_hub(name))
    if not tasks:
        return {"tasks": {}}
    meta = lam_meta(context.paths[context.model.name])
    result = mteb.evaluate(meta, tasks, cache=None, co2_tracker=False, show_progress_bar=False)
    scores = {task.task_name: task.scores["test"][0] for task in result.task_results}
    kept = {"pearson": "cosine_pearson", "spearman": "cosine_spearman"}
    return {"tasks": {name: {k: float(found[v]) for k, v in kept.items()} for name, found in scores.items()}}


def _from_hub(name: str):
    import mteb

    task = mteb.get_task(name)
    try:
        task.load_data()
    except (OSError, ValueError) as error:
        raise MissingData(name, f"mteb fetches it from the Hub, which failed ({type(error).__name__}).") from error
    return task
