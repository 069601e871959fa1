"""The suite: its parts, and the run that measures one after the other."""

import dataclasses
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..io.progress import Progress, Silent
from ..io.results import Numbers, read_results, write_result
from .data import Data
from .models import load_encoder, model_record
from .part import Context, Part, Settings
from .parts import memory, mteb, retrieval, scaling, sts
from .research import ablation, babi, long_context, pillars, recall

# In the order of a full run and of the report.
PARTS: tuple[Part, ...] = (
    sts.PART,
    mteb.PART,
    scaling.PART,
    long_context.PART,
    retrieval.PART,
    memory.PART,
    recall.PART,
    babi.PART,
    ablation.PART,
    ablation.RETRAINED,
    pillars.PART,
)

# For a look in under five minutes.
QUICK = Settings(quick=True, resamples=1_000, parts=tuple(part.quick for part in PARTS if part.quick is not None))


def settings_record(settings: Settings) -> dict[str, Any]:
    """The settings of the suite and of all parts side by side, as result files hold them."""
    own = [settings.of(part.settings) for part in PARTS if part.settings is not None]
    record = {"quick": settings.quick, "resamples": settings.resamples}
    for part in own:
        record |= dataclasses.asdict(part)
    return record | {"seed": settings.seed}


def evaluate(
    model: str,
    baselines: Iterable[str],
    data: Data,
    out: Path,
    only: Iterable[str] = (),
    settings: Settings = Settings(),  # noqa: B008 - frozen
    pairs: Iterable[Path] = (),
    progress: Progress | None = None,
) -> list[str]:
    """Run the suite on a LAM, one part after the other, each into OUT/PART.json.

    A part that is already there, complete and measured in the same way, is kept; parts named in `only` are measured
    again. Missing data sets are named and the rest goes on.

    Args:
        model: folder of the LAM.
        baselines: folders or Hub ids of models to measure beside it.
        data: the data sets.
        out: folder of the result files.
        only: names of the parts to measure; none: all.
        settings: how much is measured.
        pairs: further pair files for the part sts.
        progress: gets one task, the parts, and a line on whatever is being done; by default nothing is shown.

    Returns:
        what is missing, in sentences.

    Raises:
        ValueError: for an unknown part, a model that is no LAM, or a folder with results of another model.
        FileNotFoundError: for a pair file that does not exist.
        FloatingPointError: if the model or a baseline returns NaN or a constant vector.
    """
    out = Path(out)
    progress = progress or Silent()
    runs = {part.name: part.run for part in PARTS if part.run is not None}
    only = list(only)
    if unknown := [name for name in only if name not in runs]:
        raise ValueError(f"There is no part {', '.join(unknown)}; the parts are {', '.join(runs)}.")
    pairs = tuple(pairs)
    for path in pairs:
        if not Path(path).is_file():
            raise FileNotFoundError(f"The pair file {path} does not exist.")
    ours = load_encoder(model)
    if ours.lam is None:
        raise ValueError(f"{model} is no LAM (model_type lam): it has no memories to look into. Give it as --baseline.")
    record = model_record(model, ours)
    ours.name = record["name"]
    kept = read_results(out) if out.exists() else {}
    for old in kept.values():
        if old["model"].get("checksum", record["checksum"]) != record["checksum"]:
            raise ValueError(
                f"{out} holds results of another model ({old['model']['name']}, {old['model']['checksum'][:12]}); "
                f"this is {record['name']}, {record['checksum'][:12]}. Give another folder."
            )
    context = Context(ours, [], data, settings, pairs, {ours.name: model}, progress)
    for name in baselines:
        encoder = load_encoder(name)
        encoder.name = model_record(name, encoder)["name"]
        context.baselines.append(encoder)
        context.paths[encoder.name] = name
    others = {encoder.name: model_record(context.paths[encoder.name], encoder) for encoder in context.baselines}
    how = {"settings": settings_record(settings), "baselines": others, "pairs": [Path(path).name for path in pairs]}
    how = json.loads(json.dumps(how))  # as it is read back, to be compared with what is there
    lacking: list[str] = []
    measuring = progress.task("Measuring", len(only or runs))
    for name in only or runs:
        old = kept.get(name, {})
        if name not in only and not old.get("missing") and all(old.get(key) == value for key, value in how.items()):
            progress.say(f"{name}: kept from {old['environment']['date']}")
            measuring.advance()
            continue
        progress.say(f"{name}: measuring")
        began = time.monotonic()
        context.missing = []
        numbers: Numbers = {}
        with context.may_lack():
            numbers = runs[name](context)
        missing = [{"name": data_set.name, "how": data_set.how} for data_set in context.missing]
        lacking += [f"{name}: {data_set}" for data_set in context.missing]
        seconds = round(time.monotonic() - began, 1)
        write_result(out / f"{name}.json", numbers, part=name, model=record, **how, missing=missing, seconds=seconds)
        progress.say(f"{name}: {seconds:,.0f} s")
        measuring.advance()
    return lacking
