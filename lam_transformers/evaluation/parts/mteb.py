"""STS tasks through the mteb package: STS-B from local data or the Hub, the others from the Hub."""

from typing import Any

from ...io.results import Numbers, Record
from ..blocks import Section, Table
from ..data import MissingData
from ..part import Context, Part

HUB_TASKS = ("SICK-R", "BIOSSES", "STS12", "STS13", "STS14", "STS15", "STS16")


def run(context: Context) -> Numbers:
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
    return {"tasks": {name: {k: float(score[v]) for k, v in kept.items()} for name, score in scores.items()}}


def _from_hub(name: str) -> Any:
    import mteb

    task = mteb.get_task(name)
    try:
        task.load_data()
    except Exception as error:  # the Hub's clients raise many kinds
        how = f"mteb fetches {', '.join(HUB_TASKS)} from the Hub, which failed ({type(error).__name__})."
        raise MissingData(f"{name} of MTEB", how) from error
    return task


def section(record: Record) -> Section:
    """Both correlations of each task."""
    rows = [(name, f"{x['pearson']:.4f}", f"{x['spearman']:.4f}") for name, x in record["numbers"]["tasks"].items()]
    return Section("STS tasks of MTEB", [Table(("task", "Pearson", "Spearman"), rows)])


PART = Part(name="mteb", run=run, section=section)
