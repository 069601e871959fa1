"""The suite: its parts, what they are given, and the run that does them in turn."""

import contextlib
import dataclasses
import importlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..io.results import write_result
from .data import Data, MissingData
from .models import Encoder, load_encoder, model_record

# Part -> module of this package whose `run(context)` measures it, in the order of a full run.
PARTS = {
    "sts": "parts.sts",
    "scaling": "parts.scaling",
    "recall": "research.recall",
    "pillars": "research.pillars",
    "long_context": "research.long_context",
    "babi": "research.babi",
    "ablation": "research.ablation",
    "retrieval": "research.long_retrieval",
    "mteb": "parts.mteb",
}


@dataclass(frozen=True)
class Settings:
    """How much is measured; `quick` is for a look in under five minutes, the defaults for a report."""

    quick: bool = False
    resamples: int = 10_000
    sts_pairs: int | None = None  # of each pair file; None: all
    # Scaling
    lengths: tuple[int, ...] = (
        128, 129, 512, 1_000, 1_024, 4_097, 8_192, 10_000, 32_768, 99_991, 100_000, 262_144, 1_000_000,
    )  # fmt: skip
    baseline_limit: int = 32_768
    # Long context
    sensitivity_lengths: tuple[int, ...] = (1_000, 10_000, 100_000)
    sensitivity_texts: int = 2
    facts: int = 32
    retention_lags: tuple[int, ...] = (1, 4, 16, 64, 256, 1_024, 4_096)
    probe_lengths: tuple[int, ...] = (512, 2_048, 8_192, 32_768)
    probe_documents: int = 10
    # Retrieval of long documents
    document_tokens: int = 16_384
    leval_documents: int = 200
    retrieval_books: int = 17
    book_segments: int = 4
    book_tokens: int = 8_192
    # Recall
    recall_pairs: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256, 512)
    recall_trials: int = 20
    babi_tasks: tuple[int, ...] = (1, 2, 3, 15)
    babi_questions: int = 500
    # Ablation at inference
    ablation_books: int = 17
    ablation_tokens: int = 2_048
    # Pillars
    separation_pairs: int = 300
    salience_tokens: int = 40_000
    seed: int = 0


QUICK = Settings(
    quick=True, resamples=1_000, sts_pairs=300, lengths=(128, 1_000, 2_049, 4_097), baseline_limit=2_049,
    sensitivity_lengths=(1_000, 4_000), sensitivity_texts=1, facts=16, retention_lags=(1, 4, 16, 64, 256),
    probe_lengths=(512, 2_048), probe_documents=6, document_tokens=2_048, leval_documents=8, retrieval_books=6,
    book_segments=1, book_tokens=1_024, recall_pairs=(4, 16, 64, 256), recall_trials=4, babi_tasks=(1, 15),
    babi_questions=100, ablation_books=4, ablation_tokens=512, separation_pairs=60, salience_tokens=4_000,
)  # fmt: skip


@dataclass
class Context:
    """What a part is given.

    Attributes:
        model: the LAM under test; its `lam` is the `LAMModel`.
        baselines: encoders measured beside it.
        pairs: further pair files for the part sts.
        paths: name or folder of each model by its name in the results, for parts that load it in a process of its own.
        missing: data sets that a part found absent while it measured the rest.
    """

    model: Encoder
    baselines: list[Encoder]
    data: Data
    settings: Settings
    pairs: tuple[Path, ...] = ()
    paths: dict[str, str] = field(default_factory=dict)
    say: Callable[[str], None] = print
    missing: list[MissingData] = field(default_factory=list)

    @property
    def encoders(self) -> list[Encoder]:
        return [self.model, *self.baselines]

    @contextlib.contextmanager
    def may_lack(self) -> Iterator[None]:
        """Note missing data and go on behind the block."""
        try:
            yield
        except MissingData as missing:
            self.missing.append(missing)
            self.say(str(missing))


def read_result(path: Path) -> dict[str, Any]:
    """A result file. Raises ValueError, naming it, if it is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record, dict) and {"environment", "numbers"} <= record.keys():
            return record
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON file ({error}); remove it and run its part again.") from error
    raise ValueError(f"{path} is no result of the evaluation suite: it has no environment or no numbers.")


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """The result files of a folder by part. Raises ValueError for files that are none, or of several models.

    A part that trains its own models, from none of the weights that the others measure, has no checksum.
    """
    results = {path.stem: read_result(path) for path in sorted(Path(folder).glob("*.json"))}
    models = {record["model"].get("checksum"): record["model"]["name"] for record in results.values()}
    models.pop(None, None)
    if len(models) > 1:
        raise ValueError(f"{folder} holds results of several models: {', '.join(models.values())}. Separate them.")
    return results


def evaluate(
    model: str,
    baselines: Iterable[str],
    data: Data,
    out: Path,
    only: Iterable[str] = (),
    settings: Settings = Settings(),
    pairs: Iterable[Path] = (),
    say: Callable[[str], None] = print,
) -> list[str]:
    """Run the suite on a LAM, a part after the other, each into OUT/PART.json.

    A part that is already there, complete and measured in the same way, is kept; parts named in `only` are measured
    again. Missing data sets are named and the rest goes on.

    Returns:
        what is missing, in sentences.

    Raises:
        ValueError: for an unknown part, a model that is no LAM, or a folder with results of another model.
        FloatingPointError: if the model or a baseline returns NaN or a constant vector.
    """
    out, only, pairs = Path(out), list(only), tuple(pairs)
    if unknown := [name for name in only if name not in PARTS]:
        raise ValueError(f"There is no part {', '.join(unknown)}; the parts are {', '.join(PARTS)}.")
    for path in pairs:
        if not Path(path).is_file():
            raise FileNotFoundError(f"The pair file {path} does not exist.")
    ours = load_encoder(model)
    if ours.lam is None:
        raise ValueError(f"{model} is no LAM (model_type lam): it has no memories to look into. Give it as --baseline.")
    record = model_record(model, ours)
    ours.name = record["name"]
    kept = read_results(out) if out.exists() else {}
    for found in kept.values():
        if found["model"].get("checksum", record["checksum"]) != record["checksum"]:
            raise ValueError(
                f"{out} holds results of another model ({found['model']['name']}, {found['model']['checksum'][:12]}); "
                f"this is {record['name']}, {record['checksum'][:12]}. Give another folder."
            )
    context = Context(ours, [], data, settings, pairs, {ours.name: model}, say)
    for name in baselines:
        encoder = load_encoder(name)
        encoder.name = model_record(name, encoder)["name"]
        context.baselines.append(encoder)
        context.paths[encoder.name] = name
    others = {encoder.name: model_record(context.paths[encoder.name], encoder) for encoder in context.baselines}
    how = {"settings": dataclasses.asdict(settings), "baselines": others, "pairs": [Path(p).name for p in pairs]}
    how = json.loads(json.dumps(how))
    missing: list[str] = []
    for part in only or PARTS:
        old = kept.get(part, {})
        if part not in only and not old.get("missing") and all(old.get(name) == value for name, value in how.items()):
            say(f"{part}: kept from {old['environment']['date']}")
            continue
        say(f"{part}: measuring")
        began, context.missing = time.monotonic(), []
        run = importlib.import_module(f".{PARTS[part]}", __package__).run
        numbers: dict[str, Any] = {}
        with context.may_lack():
            numbers = run(context)
        lacking = [{"name": found.name, "how": found.how} for found in context.missing]
        missing += [f"{part}: {found}" for found in context.missing]
        seconds = round(time.monotonic() - began, 1)
        write_result(out / f"{part}.json", numbers, part=part, model=record, **how, missing=lacking, seconds=seconds)
        say(f"{part}: {seconds:,.0f} s")
    return missing
