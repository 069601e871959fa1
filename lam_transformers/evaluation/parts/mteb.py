"""STS tasks through the mteb package: STS-B from local data or the Hub, the others from the Hub."""

from typing import Any

from ..data import MissingData

HUB_TASKS = ("SICK-R", "BIOSSES", "STS12", "STS13", "STS14", "STS15", "STS16")


def run(context) -> dict[str, Any]:
    """Pearson and Spearman correlation of the cosine on the STS tasks of MTEB, as fractions of 1.

    Where the Hub cannot be had for one task, the others of the Hub are not tried.
    """
    try:
        import mteb

        from ..mteb import lam_meta, stsbenchmark
    except ImportError as error:
        raise MissingData("the package mteb", f"Install lam-transformers[mteb] ({error}).") from error
    tasks: list[Any] = []
    with context.may_lack():
        tasks.append(stsbenchmark(context.data.path("stsb_test")))
    with context.may_lack():
        tasks += map(_from_hub, () if context.settings.quick else HUB_TASKS)
    if not tasks:
        return {}
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
    except Exception as error:  # the Hub's clients raise many kinds
        how = f"mteb fetches {', '.join(HUB_TASKS)} from the Hub, which failed ({type(error).__name__})."
        raise MissingData(f"{name} of MTEB", how) from error
    return task
