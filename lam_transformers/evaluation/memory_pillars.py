"""The six pillars of the LAM documents, restated where a memory service can be measured."""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from ..io.results import Numbers
from ..memories import Memory, Ranking
from ..memories.words import split_words, wording
from ..scoring.statistics import paired_test
from .conversations import Conversation
from .remembered import DAY, MOST, STRENGTHS, USER, Remembered, first_place, ranked

ALPHA = 0.05
_DAYS = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
# Not May, which is more often another word.
_MONTHS = "January|February|March|April|June|July|August|September|October|November|December"
_DETAIL = re.compile(rf"\b(\d+|{_DAYS}|{_MONTHS})\b")


def other_detail(text: str) -> str | None:
    """The same text with its first number, weekday or month changed; None if it has none."""
    match = _DETAIL.search(text)
    if match is None:
        return None
    word = match[1]
    if word.isdigit():
        changed = str(int(word) + 7) if len(word) < 9 else word[::-1] + "1"
    else:
        names = (_DAYS if word in _DAYS else _MONTHS).split("|")
        changed = names[(names.index(word) + 3) % len(names)]
    return text[: match.start()] + changed + text[match.end() :]


@dataclass
class Evidence:
    """What the six statements are judged by, over all conversations that were looked at.

    Attributes:
        overlap: of each question, the share of its words that are in its evidence.
        isolated, words, carried: 1 / rank of its evidence by the vectors of turns alone, BM25 and carried vectors.
        aged: (turns since the evidence, 1 / rank with strengths on) of each question.
        recalled, control: 1 / rank after a delay, of evidence that was recalled and of the same when others were.
        told_apart: for each cue whether the right one of two memories that differ in a detail came first.
        merged: for other details, and for copies that were typed carelessly, whether they are near-duplicates to the
            service.
        novelty: (quantile of its novelty in its conversation, whether it is evidence) of each turn.
        distractors: number of turns between the recall and the question.
    """

    overlap: list[float] = field(default_factory=list)
    isolated: list[float] = field(default_factory=list)
    words: list[float] = field(default_factory=list)
    carried: list[float] = field(default_factory=list)
    aged: list[tuple[float, float]] = field(default_factory=list)
    recalled: list[float] = field(default_factory=list)
    control: list[float] = field(default_factory=list)
    told_apart: list[bool] = field(default_factory=list)
    merged: dict[str, list[bool]] = field(default_factory=lambda: {"copies": [], "other details": []})
    novelty: list[tuple[float, bool]] = field(default_factory=list)
    distractors: list[int] = field(default_factory=list)

    def gather(self, remembered: Remembered, other: Conversation | None, distractors: int, details: int) -> None:
        """Looks into one conversation.

        Args:
            remembered: the conversation.
            other: where the distractors come from.
            distractors: number of turns of it that are remembered between a recall and the question.
            details: number of turns of which a copy with another detail is made.
        """
        conversation = remembered.conversation
        count = len(conversation.texts)
        strong = Ranking(strengths=STRENGTHS)
        with remembered.open() as memory:
            for question in conversation.questions:
                said = set(itertools.chain(*(split_words(conversation.texts[place]) for place in question.evidence)))
                own = set(split_words(question.text))
                self.overlap.append(len(own & said) / max(len(own), 1))
                signals = remembered.signals(memory, question.text)
                self.isolated.append(first_place(ranked(signals["cosine alone"]), question.evidence))
                self.words.append(first_place(ranked(signals["bm25"]), question.evidence))
                self.carried.append(first_place(ranked(signals["cosine carried"]), question.evidence))
                order = remembered.order(memory, question.text, strong, MOST)
                age = float(count - max(question.evidence))
                self.aged.append((age, first_place(order, question.evidence)))
        evidence = frozenset(itertools.chain(*(question.evidence for question in conversation.questions)))
        quantiles = stats.rankdata(remembered.novelty) / count
        self.novelty += [
            (float(quantiles[i]), i in evidence) for i in range(count) if np.isfinite(remembered.novelty[i])
        ]
        self._recall(remembered, other, distractors)
        self._tell_apart(remembered, details)

    def _recall(self, remembered: Remembered, other: Conversation | None, count: int) -> None:
        """Every second question's evidence is recalled on three days; in the control as many other turns are."""
        conversation = remembered.conversation
        chosen = conversation.questions[::2]
        evidence = sorted(frozenset(itertools.chain(*(question.evidence for question in chosen))))
        rest = [place for place in range(len(conversation.texts)) if place not in evidence]
        others = [rest[int(i)] for i in np.linspace(0, len(rest) - 1, min(len(evidence), len(rest)))] if rest else []
        turns = [] if other is None else [text[:600] for text in other.texts[:count]]
        self.distractors.append(len(turns))
        began = remembered.clock.seconds
        for name, places, ranks in (("recalled.db", evidence, self.recalled), ("control.db", others, self.control)):
            remembered.clock.seconds = began
            place = remembered.copy(name)
            with remembered.open(place, strengths=True) as memory:
                for _ in range(3):
                    remembered.clock.wait()
                    for turn in places:
                        memory.search(conversation.texts[turn][:400], user_id=USER, top_k=1, kinds=["turn"])
                remembered.clock.wait(30 * DAY)
                if turns:
                    messages = [{"role": "user", "content": text} for text in turns if text.strip()]
                    memory.add(messages, user_id=USER, run_id="another conversation")
            with remembered.open(place, ranking=Ranking(strengths=STRENGTHS)) as memory:
                for question in chosen:
                    ids = [r.id for r in memory.search(question.text, user_id=USER, top_k=MOST, kinds=["turn"])]
                    wanted = {remembered.ids[turn] for turn in question.evidence}
                    ranks.append(next((1 / rank for rank, id in enumerate(ids, 1) if id in wanted), 0.0))

    def _tell_apart(self, remembered: Remembered, count: int) -> None:
        """Short turns, each beside one with another detail, are asked for by a copy that reads a little differently."""
        pairs = []
        for text in remembered.conversation.texts:
            changed = other_detail(text) if len(text) <= 400 else None
            if changed is not None and changed != text:
                pairs.append((text, changed))
        pairs = pairs[:count]
        if not pairs:
            return
        least = Ranking().duplicates or 1.0
        copies = [f"By the way, {text[0].lower()}{text[1:]}" for text, _ in pairs]
        others = {
            "other details": [changed for _, changed in pairs],
            "copies": [text.lower().rstrip(".!") for text, _ in pairs],
        }
        texts = [text for text, _ in pairs]
        distinct = list(dict.fromkeys([*texts, *others["other details"], *others["copies"]]))
        readings = remembered.reader.read(distinct, passages=False)
        vectors = {text: reading.alone for text, reading in zip(distinct, readings, strict=True)}
        for name, seconds in others.items():
            for text, second in zip(texts, seconds, strict=True):
                is_near = float(vectors[text] @ vectors[second]) >= least
                self.merged[name].append(is_near and wording(text) == wording(second))
        with Memory(remembered.folder / "details.db", model=remembered.reader, carried=False) as memory:
            known: dict[str, set[str]] = {}
            for number, pair in enumerate(pairs):
                # Which of the two is written first changes from pair to pair: it must not decide.
                for text in pair if number % 2 else pair[::-1]:
                    (record,) = memory.add(text, user_id=USER)
                    known.setdefault(text, set()).add(record.id)
            for (text, changed), copy in zip(pairs, copies, strict=True):
                results = memory.search(copy, user_id=USER, top_k=MOST, ranking=Ranking(duplicates=None))
                first = next((r.id for r in results if r.id in known[text] | known[changed]), None)
                self.told_apart.append(first in known[text])

    def pillars(self) -> list[Numbers]:
        """One entry a pillar: statement, null hypothesis, measurement, p and verdict."""
        makers: tuple[tuple[str, Callable[[], Numbers | None]], ...] = (
            ("cross timescale", self._cross_timescale),
            ("pattern separation", self._pattern_separation),
            ("reconsolidation", self._reconsolidation),
            ("semantic projection", self._semantic_projection),
            ("cognitive realism", self._cognitive_realism),
            ("salience gating", self._salience_gating),
        )
        judged = []
        for name, make in makers:
            made = make()
            if made is not None:
                judged.append({"pillar": name, **made, "passes": bool(made["p"] < ALPHA)})
        return judged

    def _cross_timescale(self) -> Numbers | None:
        return _paired(
            "What was said before helps to find a turn: vectors carried through the conversation place the evidence "
            "higher than those of the turns alone.",
            "Both place it equally high.",
            ("carried", self.carried),
            ("isolated", self.isolated),
        )

    def _pattern_separation(self) -> Numbers | None:
        if not self.told_apart:
            return None
        right = sum(self.told_apart)
        return {
            "statement": "Of two memories that differ in one detail, a cue that holds the detail brings up the right "
            "one.",
            "null": "The wrong one comes first as often.",
            "measured": {
                "right_one_first": right / len(self.told_apart),
                "pairs": len(self.told_apart),
                "shown_as_one_though_different": float(np.mean(self.merged["other details"])),
                "copies_shown_as_one": float(np.mean(self.merged["copies"])),
            },
            "p": float(stats.binomtest(right, len(self.told_apart), alternative="greater").pvalue),
        }

    def _reconsolidation(self) -> Numbers | None:
        made = _paired(
            "What was recalled on three days is placed higher a month later, with other things remembered since.",
            "It is placed no higher than when as many other turns were recalled.",
            ("recalled", self.recalled),
            ("others_recalled", self.control),
        )
        if made is not None:
            made["measured"]["distractors"] = int(np.median(self.distractors))
        return made

    def _semantic_projection(self) -> Numbers | None:
        low = [i for i, share in enumerate(self.overlap) if share <= np.median(self.overlap)]
        made = _paired(
            "What is asked for in other words is found by its meaning: on the half of the questions that shares fewer "
            "words with its evidence, vectors place it higher than BM25.",
            "They place it no higher.",
            ("vectors", [self.isolated[i] for i in low]),
            ("bm25", [self.words[i] for i in low]),
        )
        if made is not None:
            made["measured"]["words_shared"] = float(np.mean([self.overlap[i] for i in low]))
        return made

    def _cognitive_realism(self) -> Numbers | None:
        if len(self.aged) < 3:
            return None
        ages, ranks = np.array(self.aged).T
        falls = stats.kendalltau(ages, ranks, alternative="less")
        return {
            "statement": "With strengths on, what was said longer ago is found less well, as people forget.",
            "null": "How high the evidence is placed does not fall with the number of turns since.",
            "measured": {"rank_correlation": _number(falls.statistic), "questions": len(ages)},
            "p": _number(falls.pvalue, 1.0),
        }

    def _salience_gating(self) -> Numbers | None:
        asked = [quantile for quantile, wanted in self.novelty if wanted]
        rest = [quantile for quantile, wanted in self.novelty if not wanted]
        if not asked or not rest:
            return None
        test = stats.mannwhitneyu(asked, rest, alternative="greater")
        return {
            "statement": "What is asked about later was new when it was said: it began with a higher slow strength.",
            "null": "Turns that answer a question began no stronger than the others of their conversation.",
            "measured": {
                "quantile_of_evidence": float(np.mean(asked)),
                "quantile_of_others": float(np.mean(rest)),
                "turns_of_evidence": len(asked),
            },
            "p": float(test.pvalue),
        }


def _number(value: float, otherwise: float = 0.0) -> float:
    """A number; `otherwise` for NaN, which a test gives where all values are equal."""
    return float(value) if np.isfinite(value) else otherwise


def _paired(
    statement: str, null: str, first: tuple[str, list[float]], second: tuple[str, list[float]]
) -> Numbers | None:
    """A statement that the first of two series of 1 / rank is higher, pair by pair (Wilcoxon)."""
    if not first[1]:
        return None
    measured = {f"{name}_mean_reciprocal_rank": float(np.mean(values)) for name, values in (first, second)}
    return {
        "statement": statement,
        "null": null,
        "measured": measured | {"questions": len(first[1])},
        "p": paired_test(np.array(first[1]), np.array(second[1])),
    }
