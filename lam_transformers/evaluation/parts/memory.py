"""Memory that lasts: how well what was said is found again, by the service's ranking and by each single way.

Each conversation is remembered by a real `Memory`, in a file of its own, and its questions are asked there; the
service's own vectors and words are also what the single ways are made of.
"""

import itertools
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...io.results import Numbers, Record, Results, numbers_of
from ...memories import Ranking
from ...memories.reading import Reader
from ...scoring.statistics import interval
from .. import drawing
from ..blocks import Block, Figure, Section, Table, Text, p_value, prose, with_interval
from ..conversations import read_conversations
from ..data import ENDINGS, MissingData
from ..memory_pillars import ALPHA, Evidence
from ..part import Context, Part
from ..remembered import FUSED, MEASURES, STRENGTHS, Remembered, fused, macro_means, measures, ranked

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

DEFAULT = "the service's default"
AHEAD = 0.03  # R@10 by which the default should be ahead of every single way
MERGED = 0.05  # share of memories with different details that may be shown as one result
# What is changed in the service's ranking, one thing at a time.
ABLATIONS: dict[str, Ranking] = {
    "carried vectors off": Ranking(carried=0.0),
    "BM25 off": Ranking(words=0.0),
    "speaker off": Ranking(said=0.0),
    "near-duplicates each a result": Ranking(duplicates=None),
    "best passages on": Ranking(passages=True),
}
STRENGTHS_ON = "strengths on"


@dataclass(frozen=True)
class MemorySettings:
    """How much is measured.

    Attributes:
        memory_conversations: of each file; None: all.
        memory_pillars: conversations of each file on which the pillars are measured.
        memory_distractors: turns of another conversation that are remembered between a recall and the question.
        memory_details: turns of each conversation of which a copy with another detail is made.
    """

    memory_conversations: int | None = None
    memory_pillars: int = 5
    memory_distractors: int = 40
    memory_details: int = 30


def run(context: Context) -> Numbers:
    """R@5, R@10, hit@10 and nDCG@10 of every way on each file, ablations of the ranking, and six statements.

    All means are over the kinds of question. Null hypothesis of each difference: the default ranking and the other one
    are equally good (bootstrap over the questions of each kind, both on the same resamples). Null hypothesis of each
    statement: it is said beside it, and tested over all conversations that were looked at.
    """
    settings = context.settings.of(MemorySettings)
    reader = Reader(context.model.model)
    sets: dict[str, Numbers] = {}
    evidence = Evidence()
    for path in conversation_files(context.data.folder):
        name = path.name.split(".")[0]
        # One more than are asked, so that the last of them has another one to be distracted by.
        most = settings.memory_conversations
        conversations = list(itertools.islice(read_conversations(path), None if most is None else most + 1))
        asked = [conversation for conversation in conversations[:most] if conversation.questions]
        if not asked:
            context.missing.append(MissingData(f"questions in {path.name}", "None of them names turns that it has."))
            continue
        answers = _Answers()
        for number, conversation in enumerate(asked):
            context.say(f"{name}: conversation {number + 1} of {len(asked)}, {len(conversation.texts)} turns")
            other = next((one for one in conversations[number + 1 :] + conversations if one is not conversation), None)
            with tempfile.TemporaryDirectory() as folder:
                remembered = Remembered(conversation, reader, Path(folder))
                _ask(context, remembered, answers)
                if number < settings.memory_pillars:
                    evidence.gather(remembered, other, settings.memory_distractors, settings.memory_details)
        sets[name] = answers.numbers(context)
        sets[name] |= {"conversations": len(asked), "turns": sum(len(one.texts) for one in asked)}
    if not sets:
        raise MissingData("questions about conversations", "No file of the folder memory has any.")
    return {"sets": sets, "pillars": evidence.pillars(), "alpha": ALPHA, "settings": asdict(settings)}


def conversation_files(folder: Path | None) -> list[Path]:
    """The files of conversations in the folder `memory` of the data.

    Raises:
        MissingData: if there are none.
    """
    names = () if folder is None else (folder / "memory").glob("*")
    files = sorted(path for path in names if path.name.endswith((*ENDINGS, ".txt")))
    if not files:
        raise MissingData(
            "conversations with questions",
            "Expected memory/NAME.jsonl[.gz|.xz] below --data DIR or LAM_DATA_DIR, a conversation a line as BEAM or "
            "LoCoMo has them, or memory/NAME.txt as examples/data/conversations.txt (docs/EVALUATION.md).",
        )
    return files


@dataclass
class _Answers:
    """What each way gave to each question of a file.

    Attributes:
        kinds: of the questions.
        ways: rows of MEASURES by way, one a question.
        changed: the same by ablation.
    """

    kinds: list[str] = field(default_factory=list)
    ways: dict[str, list[tuple[float, ...]]] = field(default_factory=dict)
    changed: dict[str, list[tuple[float, ...]]] = field(default_factory=dict)

    def note(
        self,
        kind: str,
        evidence: frozenset[int],
        ways: Mapping[str, Sequence[int]],
        changed: Mapping[str, Sequence[int]],
    ) -> None:
        """Takes the orders of one question."""
        self.kinds.append(kind)
        for rows, orders in ((self.ways, ways), (self.changed, changed)):
            for name, order in orders.items():
                rows.setdefault(name, []).append(measures(order, evidence))

    def note_strengths(self, evidence: frozenset[int], order: Sequence[int]) -> None:
        """Takes the order with strengths of one question, in the order of the questions."""
        self.changed.setdefault(STRENGTHS_ON, []).append(measures(order, evidence))

    def numbers(self, context: Context) -> Numbers:
        """Means with intervals, the default's differences, and the same by kind of question."""
        resamples = context.settings.resamples
        tables = {name: np.array(rows) for name, rows in (self.ways | self.changed).items()}
        means = macro_means(tables, self.kinds, resamples)
        default = means[DEFAULT]

        def difference(name: str) -> Numbers:
            """The default less another way."""
            gap = {measure: default[measure][0] - means[name][measure][0] for measure in MEASURES}
            drawn = {measure: default[measure][1] - means[name][measure][1] for measure in MEASURES}
            return {measure: {"difference": gap[measure], "interval": interval(drawn[measure])} for measure in MEASURES}

        def shown(names: Iterable[str]) -> dict[str, Numbers]:
            return {
                name: {m: {"mean": means[name][m][0], "interval": interval(means[name][m][1])} for m in MEASURES}
                for name in names
            }

        by_kind: dict[str, Numbers] = {}
        for kind in sorted(set(self.kinds)):
            inside = [i for i, other in enumerate(self.kinds) if other == kind]
            own = {name: tables[name][inside] for name in self.ways}
            drawn = macro_means(own, [kind] * len(inside), resamples)
            rows = {
                name: {m: {"mean": drawn[name][m][0], "interval": interval(drawn[name][m][1])} for m in MEASURES}
                for name in self.ways
            }
            by_kind[kind] = {"questions": len(inside), "ways": rows}
        return {
            "questions": len(self.kinds),
            "ways": shown(self.ways),
            "differences": {name: difference(name) for name in self.ways if name != DEFAULT},
            "ablations": {name: shown([name])[name] | {"default_less": difference(name)} for name in self.changed},
            "by_kind": by_kind,
        }


def _ask(context: Context, remembered: Remembered, answers: _Answers) -> None:
    """Asks all questions about a conversation in every way."""
    ours = context.model.name
    questions = remembered.conversation.questions
    cosines = {}
    for baseline in context.baselines:
        texts = baseline.encode(remembered.conversation.texts)
        cosines[f"{baseline.name}, isolated"] = baseline.encode([question.text for question in questions]) @ texts.T
    with remembered.open() as memory:
        for number, question in enumerate(questions):
            signals = remembered.signals(memory, question.text)
            ways = {DEFAULT: remembered.order(memory, question.text), "BM25": ranked(signals["bm25"])}
            single = {name: rows[number] for name, rows in cosines.items()}
            single[f"{ours}, isolated"] = signals["cosine alone"]
            single[f"{ours}, carried"] = signals["cosine carried"]
            for name, values in single.items():
                ways[name] = ranked(values)
                ways[f"{name} + BM25"] = ranked(fused(values, signals["bm25"]))
            changed = {name: remembered.order(memory, question.text, ranking) for name, ranking in ABLATIONS.items()}
            answers.note(question.kind, question.evidence, ways, changed)
    # Each question strengthens what it recalls, so it is asked of a copy, an hour after the one before it.
    with remembered.open(
        remembered.copy("strengths.db"), strengths=True, ranking=Ranking(strengths=STRENGTHS)
    ) as memory:
        for question in questions:
            remembered.clock.wait(3600.0)
            answers.note_strengths(question.evidence, remembered.order(memory, question.text))


def section(record: Record) -> Section:
    """Every way on each file, the ablations, R@10 by kind of question, and the six statements."""
    numbers = record["numbers"]
    blocks: list[Block] = [
        prose(
            """
            Each conversation is remembered by the service in a file of its own, and its questions are asked there.
            Means are over the kinds of question; R@10 is the share of a question's evidence among the first ten
            results. The fused ways give BM25 the weight {{ weight }}.
            """,
            weight=FUSED,
        )
    ]
    for name, measured in numbers["sets"].items():
        blocks += _set_blocks(name, measured)
    blocks.append(Figure("memory", "R@10 of each way of finding a turn again, 95 % intervals."))
    rows = [
        (row["pillar"], row["statement"], row["null"], _shown(row["measured"]), p_value(row["p"]), _verdict(row))
        for row in numbers["pillars"]
    ]
    blocks.append(Text("The six pillars of the LAM documents, restated where a memory service can be measured:"))
    blocks.append(Table(("pillar", "statement", "null hypothesis", "measured", "p", "verdict"), rows))
    return Section("Memory that lasts", blocks)


def _set_blocks(name: str, measured: Numbers) -> list[Block]:
    described = prose(
        "{{ name }}: {{ conversations }} conversations, {{ turns }} turns, {{ questions }} questions with evidence.",
        name=name,
        conversations=measured["conversations"],
        turns=f"{measured['turns']:,}",
        questions=f"{measured['questions']:,}",
    )
    header = ("way", "R@5", "R@10", "hit@10", "nDCG@10", "default minus it (R@10)")
    rows = [(*_row(way, x), _difference(measured["differences"].get(way))) for way, x in measured["ways"].items()]
    changed = [
        (*_row(way, x), _difference(x["default_less"]), _difference(x["default_less"], "ndcg@10"))
        for way, x in measured["ablations"].items()
    ]
    ways = list(measured["ways"])
    kinds = []
    for kind, x in measured["by_kind"].items():
        cells = (x["ways"][way]["recall@10"] for way in ways)
        kinds.append((kind, str(x["questions"]), *(with_interval(c["mean"], c["interval"]) for c in cells)))
    return [
        described,
        Table(header, rows),
        Text("The default ranking with one thing changed; a positive difference speaks for the default."),
        Table((*header[:5], "default minus it (R@10)", "default minus it (nDCG@10)"), changed),
        Text("R@10 by kind of question:"),
        Table(("kind", "questions", *ways), kinds),
    ]


def _row(way: str, x: Numbers) -> tuple[str, ...]:
    wide = (with_interval(x[m]["mean"], x[m]["interval"]) for m in ("recall@5", "recall@10", "hit@10", "ndcg@10"))
    return (way, *wide)


def _difference(difference: Numbers | None, measure: str = "recall@10") -> str:
    """The default less another way; empty for the default itself."""
    if difference is None:
        return ""
    return with_interval(difference[measure]["difference"], difference[measure]["interval"])


def _shown(measured: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {x:.3f}" if isinstance(x, float) else f"{name.replace('_', ' ')} {x}"
        for name, x in measured.items()
    )


def _verdict(row: Numbers) -> str:
    return "passes" if row["passes"] else "fails"


def weaknesses(results: Results) -> list[str]:
    """Single ways that the default is not shown to be ahead of, parts that do harm, statements that fail."""
    numbers = numbers_of(results, PART.name)
    if not numbers:
        return []
    lines = []
    for name, measured in numbers["sets"].items():
        for way, row in measured["differences"].items():
            gap = row["recall@10"]
            if gap["interval"][1] < 0:
                lines.append(f"The memory's default ranking is behind {way} on {name}: R@10 {_difference(row)}.")
            elif gap["interval"][0] <= 0 or gap["difference"] < AHEAD:
                least = f"{AHEAD} ahead of {way} on {name}"
                lines.append(f"The memory's default ranking is not shown to be {least}: R@10 {_difference(row)}.")
        for way, row in measured["ablations"].items():
            gap = row["default_less"]
            if gap["recall@10"]["interval"][1] < 0:
                lines.append(f"The memory's ranking is better with {way} on {name}: R@10 {_difference(gap)}.")
    for row in numbers["pillars"]:
        shown = row["measured"].get("shown_as_one_though_different", 0.0)
        if shown > MERGED:
            lines.append(f"The memory shows {shown:.0%} of the memories that differ in one detail as one result.")
    failed = [row for row in numbers["pillars"] if not row["passes"]]
    return lines + [f"The memory fails the pillar {row['pillar']} (p = {row['p']:.2g})." for row in failed]


def draw(numbers: Numbers, model: str) -> "Drawing":
    """R@10 of each way with its interval, a panel for each file."""
    sets = numbers["sets"]
    count = max(len(measured["ways"]) for measured in sets.values())
    figure = drawing.new_figure((6.4, len(sets) * (0.8 + 0.24 * count)))
    panels = np.atleast_1d(figure.subplots(len(sets), 1))
    for axes, (name, measured) in zip(panels, sets.items(), strict=True):
        axes.set_title(f"Turns found again ({name})")
        axes.set_xlabel("R@10, 95 % interval")
        drawing.bars(axes, list(measured["ways"]), [x["recall@10"] for x in measured["ways"].values()])
        axes.set_xlim(0, 1)
    return figure


# Its settings are in its own numbers, not beside those of the other parts: who has no conversations need not measure
# the other parts again because this one came in.
PART = Part(
    name="memory",
    run=run,
    section=section,
    weaknesses=weaknesses,
    figures={"memory": draw},
    quick=MemorySettings(memory_conversations=1, memory_pillars=1),
)
