"""How well remembered conversations are found again, by one way of ranking after the other.

    python benchmarks/memory_vectors.py --data beam_100K.jsonl.gz --cache DIR && \
    python benchmarks/memory_vectors.py --data beam_100K.jsonl.gz --cache DIR --mini && \
    python benchmarks/memory_ranking.py --data beam_100K.jsonl.gz --cache DIR [--out FILE.json]

Every question is asked of its own conversation, whose messages are the memories. R@10 is the share of a question's
evidence among the first ten, hit@10 whether any of it is, nDCG@10 as usual; means over the questions, with 95 %
intervals of 1,000 bootstrap samples of them, and differences to the default over the same samples.

Three parts of the service are then switched on and off, each in a setting in which it can matter:

- duplicates: near-duplicates are shown as one result, by the service's rule and by cosine alone; evidence counts as
  found where it is shown, also as a variant. How many messages were hidden in the first ten, and how many of them said
  the same, is counted.
- personal: the messages of another conversation are shared and searched, too.
- strengths: every second question is asked a session earlier, and what it gave is recalled; measured on the other
  questions and on the same ones, asked again.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lam_transformers.evaluation import remembered
from lam_transformers.evaluation.conversations import Conversation, read_conversations
from lam_transformers.evaluation.remembered import fused, ranked
from lam_transformers.memories.ranking import Ranking, Signals, scores
from lam_transformers.memories.strengths import FAST_KEPT, GROWTH, SLOW_KEPT
from lam_transformers.memories.words import WordIndex, bm25, count_words, wording

BLOCK = 32


class Blocks:
    """Sums of 32 tokens each, of which vectors of messages and of their passages are made."""

    def __init__(self, path: Path):
        with np.load(path) as data:
            self.sums = data["sums"].astype(np.float32)
            self.tokens = data["tokens"]
            self.bounds = np.concatenate([[0], np.cumsum(data["blocks"])])

    def messages(self) -> np.ndarray:
        """[messages, D], of length one."""
        return np.stack([_unit(self.sums[a:b].sum(0)) for a, b in zip(self.bounds, self.bounds[1:], strict=False)])

    def passages(self, tokens: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
        """[passages, D] of length one and the message of each; a message of at most `tokens` has none."""
        vectors = []
        owners = []
        for owner, (a, b) in enumerate(zip(self.bounds, self.bounds[1:], strict=False)):
            width = tokens // BLOCK
            if b - a <= width:
                continue
            for start in range(a, max(b - width + stride // BLOCK, a + 1), stride // BLOCK):
                vectors.append(_unit(self.sums[start : min(start + width, b)].sum(0)))
                owners.append(owner)
        return np.array(vectors, np.float32).reshape(-1, self.sums.shape[1]), np.array(owners, np.int64)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def best_of(cosines: np.ndarray, passages: tuple[np.ndarray, np.ndarray], query: np.ndarray) -> np.ndarray:
    """The cosine of each message or, where it has passages, of the best of both."""
    best = cosines.copy()
    if len(passages[0]):
        np.maximum.at(best, passages[1], passages[0] @ query)
    return best


class Loaded:
    """A conversation with all that was computed of it."""

    def __init__(self, conversation: Conversation, cache: Path, stem: str, number: int):
        self.conversation = conversation
        self.index = WordIndex()
        self.index.append([count_words(text) for text in conversation.texts])
        self.seen = np.ones(len(conversation.texts), bool)
        self.wordings = [wording(text) for text in conversation.texts]

        def path(name: str) -> Path:
            return cache / f"{stem}-{number}-{name}.npz"

        self.queries = np.load(path("questions"))["questions"]
        blocks = Blocks(path("alone"))
        self.isolated = np.load(path("alone"))["isolated"]
        self.passages = {
            (tokens, stride): blocks.passages(tokens, stride) for tokens, stride in ((128, 64), (64, 32), (256, 128))
        }
        self.carried = Blocks(path("carried")).messages() if path("carried").exists() else None
        self.recent = Blocks(path("recent")).messages() if path("recent").exists() else None
        self.minilm = None
        if path("minilm").exists():
            with np.load(path("minilm")) as data:
                self.minilm = dict(data)

        self.shared: Loaded = self  # another conversation

    def strengths(self) -> np.ndarray:
        """[messages] the mean of both strengths two sessions after all was said; in between, every second question."""
        vectors = self.isolated.astype(np.float32)
        cosines = np.tril(vectors @ vectors.T, -1)
        slow = np.clip(1 - cosines.max(1), 0, 1) * SLOW_KEPT
        fast = np.full(len(vectors), FAST_KEPT)
        for number in range(0, len(self.conversation.questions), 2):
            shown = np.argsort(-scores(self.signals(number), Ranking())[0], kind="stable")[:10]
            fast[shown] = 1
            slow[shown] += GROWTH * (1 - slow[shown])
        return (fast * FAST_KEPT + slow * SLOW_KEPT) / 2

    def with_shared(self, number: int) -> Signals:
        """The signals of its messages and then those of another conversation, which are shared."""
        query = self.queries[number]
        both = (self, self.shared)
        question = self.conversation.questions[number].text
        whole = all(one.carried is not None for one in both)
        return Signals(
            alone=np.concatenate([one.isolated @ query for one in both]),
            passage=np.concatenate([one.isolated @ query for one in both]),
            carried=np.concatenate([one.carried @ query for one in both]) if whole else None,
            words=np.concatenate(bm25(question, [(one.index, one.seen) for one in both])),
            lengths=np.concatenate([one.index.lengths for one in both]),
            said=np.concatenate([[role == "user" for role in one.conversation.roles] for one in both]).astype("f4"),
            personal=np.repeat([1.0, 0.0], [len(one.isolated) for one in both]).astype("f4"),
        )

    def signals(self, number: int, passage: tuple[int, int] = (128, 64)) -> Signals:
        """What the service knows of the messages for a question."""
        query = self.queries[number]
        alone = self.isolated @ query
        question = self.conversation.questions[number].text
        return Signals(
            alone=alone,
            passage=best_of(alone, self.passages[passage], query),
            carried=None if self.carried is None else self.carried @ query,
            words=bm25(question, [(self.index, self.seen)])[0],
            lengths=self.index.lengths,
            said=np.array([role == "user" for role in self.conversation.roles], np.float32),
            personal=np.ones(len(self.isolated), np.float32),
        )


Way = Callable[[Loaded, int, Signals], np.ndarray | None]


def ways() -> dict[str, Way]:
    """The rankings that are compared: conversation, question, signals -> scores [messages], None if not computed."""

    def minilm(passages: bool, weight: float) -> Way:
        def score(loaded: Loaded, number: int, signals: Signals) -> np.ndarray | None:
            if loaded.minilm is None:
                return None
            query = loaded.minilm["questions"][number]
            cosines = loaded.minilm["isolated"] @ query
            if passages:
                cosines = best_of(cosines, (loaded.minilm["passages"], loaded.minilm["owners"]), query)
            return fused(cosines, signals.words, weight)

        return score

    def default(**options) -> Way:
        ranking = Ranking(**options)
        return lambda loaded, number, signals: scores(signals, ranking)[0]

    def carried(weight: float, which: str = "carried") -> Way:
        def score(loaded: Loaded, number: int, signals: Signals) -> np.ndarray | None:
            vectors = getattr(loaded, which)
            return None if vectors is None else fused(vectors @ loaded.queries[number], signals.words, weight)

        return score

    chosen: dict[str, Way] = {"default": default()}
    chosen["BM25"] = lambda loaded, number, signals: signals.words
    chosen["LAM isolated"] = lambda loaded, number, signals: signals.alone
    chosen["LAM passages"] = lambda loaded, number, signals: signals.passage
    for weight in (0.2, 0.4, 0.6):
        chosen[f"LAM isolated + BM25 at {weight}"] = lambda loaded, number, signals, weight=weight: fused(
            signals.alone, signals.words, weight
        )
        chosen[f"LAM passages + BM25 at {weight}"] = lambda loaded, number, signals, weight=weight: fused(
            signals.passage, signals.words, weight
        )
    chosen["LAM carried"] = carried(0.0)
    chosen["LAM carried + BM25 at 0.4"] = carried(0.4)
    chosen["LAM last four turns"] = carried(0.0, "recent")
    chosen["LAM last four turns + BM25 at 0.4"] = carried(0.4, "recent")
    chosen["all-MiniLM-L6-v2 isolated"] = minilm(False, 0.0)
    chosen["all-MiniLM-L6-v2 isolated + BM25 at 0.4"] = minilm(False, 0.4)
    chosen["all-MiniLM-L6-v2 passages"] = minilm(True, 0.0)
    chosen["all-MiniLM-L6-v2 passages + BM25 at 0.4"] = minilm(True, 0.4)
    chosen["default with passages"] = default(passages=True)
    chosen["default without carried"] = default(carried=0.0)
    chosen["default without words"] = default(words=0.0)
    chosen["default without the speaker"] = default(said=0.0)
    return chosen


def measures(scored: np.ndarray, evidence: frozenset[int]) -> tuple[float, ...]:
    """R@10, hit@10 and nDCG@10."""
    return remembered.measures(ranked(scored), evidence)[1:]


def groups(one: Loaded, scored: np.ndarray, least: float, same_words: bool) -> list[list[int]]:
    """The best messages in order, near-duplicates together; the first ten groups of them."""
    made: list[list[int]] = []
    for i in (int(i) for i in np.argsort(-scored, kind="stable")[:90]):
        near = [group for group in made if one.isolated[group[0]] @ one.isolated[i] >= least]
        if same_words:
            near = [group for group in near if one.wordings[group[0]] == one.wordings[i]]
        if near:
            max(near, key=lambda group: float(one.isolated[group[0]] @ one.isolated[i])).append(i)
        elif len(made) < 50:
            made.append([i])
    return made[:10]


def grouped(shown: list[list[int]], evidence: frozenset[int]) -> tuple[float, ...]:
    """The measures where near-duplicates are shown as variants of one result."""
    hits = np.array([sum(i in evidence for i in group) for group in shown], np.float64)
    gains = 1 / np.log2(np.arange(2, 12))
    ideal = gains[: min(len(evidence), 10)].sum()
    recall = hits.sum() / len(evidence)
    return recall, float(hits.any()), float((np.minimum(hits, 1) * gains[: len(hits)]).sum() / ideal)


def near_duplicates(loaded: list[Loaded], least: float = 0.95) -> dict[str, int]:
    """How many pairs of messages, and of those that searches show as one, are near by cosine and say the same."""
    counts = dict.fromkeys(("pairs", "pairs of the same words", "hidden", "hidden of the same words"), 0)
    for one in loaded:
        for i, j in np.argwhere(np.triu(one.isolated @ one.isolated.T >= least, 1)):
            counts["pairs"] += 1
            counts["pairs of the same words"] += one.wordings[i] == one.wordings[j]
        for number in range(len(one.conversation.questions)):
            for first, *others in groups(one, scores(one.signals(number), Ranking())[0], least, same_words=False):
                counts["hidden"] += len(others)
                counts["hidden of the same words"] += sum(one.wordings[first] == one.wordings[i] for i in others)
    return counts


def switches(one: Loaded, number: int, signals: Signals, strengths: np.ndarray) -> dict[str, tuple[float, ...]]:
    """The measures of a question with a part of the service on and off."""
    question = one.conversation.questions[number]
    total = scores(signals, Ranking())[0]
    plain = measures(total, question.evidence)
    shared = one.with_shared(number)
    when = "asked again" if number % 2 == 0 else "new questions"
    best = np.argsort(-total, kind="stable")[:200]
    boost = np.zeros_like(total)
    boost[best] = strengths[best]
    values: dict[str, tuple[float, ...]] = {"duplicates off": plain, f"strengths off, {when}": plain}
    for least in (0.9, 0.95, 0.98):
        values[f"cosine from {least} alone"] = grouped(groups(one, total, least, False), question.evidence)
    least = Ranking().duplicates
    assert least is not None
    values["duplicates"] = grouped(groups(one, total, least, True), question.evidence)
    for name, personal in (("off", 0.0), ("on", Ranking().personal)):
        scored = scores(shared, Ranking(personal=personal))[0]
        values[f"personal {name}"] = measures(scored, question.evidence)
    for amount in (0.05, 0.1):
        values[f"strengths {amount}, {when}"] = measures(total + amount * boost, question.evidence)
    return values


SWITCHED = [
    ("duplicates", "duplicates off"),
    ("cosine from 0.9 alone", "duplicates off"),
    ("cosine from 0.95 alone", "duplicates off"),
    ("cosine from 0.98 alone", "duplicates off"),
    ("personal on", "personal off"),
    ("strengths 0.05, new questions", "strengths off, new questions"),
    ("strengths 0.1, new questions", "strengths off, new questions"),
    ("strengths 0.05, asked again", "strengths off, asked again"),
    ("strengths 0.1, asked again", "strengths off, asked again"),
]


def compare_switches(loaded: list[Loaded], generator: np.random.Generator) -> dict[str, dict]:
    """Differences of the measures between on and off, with 95 % intervals of R@10's."""
    values: dict[str, list[tuple[float, ...]]] = {}
    for one in loaded:
        strengths = one.strengths()
        for number in range(len(one.conversation.questions)):
            for name, measured in switches(one, number, one.signals(number), strengths).items():
                values.setdefault(name, []).append(measured)
    compared = {}
    for on, off in SWITCHED:
        differences = np.array(values[on]) - np.array(values[off])
        samples = generator.integers(0, len(differences), (1000, len(differences)))
        low, high = np.percentile(differences[samples, 0].mean(1), [2.5, 97.5])
        recall, hit, ndcg = differences.mean(0)
        compared[on] = {
            "questions": len(differences), "off": float(np.mean(values[off], 0)[0]), "recall@10": float(recall),
            "interval": [float(low), float(high)], "hit@10": float(hit), "ndcg@10": float(ndcg),
        }  # fmt: skip
        print(
            f"{on:32} less {off:32} R@10 {recall:+.3f} [{low:+.3f}, {high:+.3f}]  hit {hit:+.3f}  nDCG {ndcg:+.3f}  "
            f"({len(differences)} questions, off: R@10 {compared[on]['off']:.3f})"
        )
    return compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    stem = options.data.name.split(".")[0]
    loaded = [
        Loaded(conversation, options.cache, stem, number)
        for number, conversation in enumerate(read_conversations(options.data))
        if all((options.cache / f"{stem}-{number}-{name}.npz").exists() for name in ("alone", "questions"))
    ]
    for one, other in zip(loaded, loaded[1:] + loaded[:1], strict=True):
        one.shared = other
    values: dict[str, list] = {}
    kinds = []
    for one in loaded:
        for number, question in enumerate(one.conversation.questions):
            signals = one.signals(number)
            kinds.append(question.kind)
            for name, way in ways().items():
                scored = way(one, number, signals)
                values.setdefault(name, []).append(
                    (np.nan,) * 3 if scored is None else measures(scored, question.evidence)
                )
    tables = {name: np.array(rows) for name, rows in values.items()}
    generator = np.random.default_rng(0)
    samples = generator.integers(0, len(kinds), (1000, len(kinds)))
    result: dict = {"conversations": len(loaded), "questions": len(kinds), "ways": {}}
    print(f"{len(loaded)} conversations, {len(kinds)} questions")
    print(f"{'':42} R@10                  hit@10  nDCG@10  default less this one")
    for name, table in tables.items():
        have = np.isfinite(table[:, 0])
        if not have.any():
            continue
        mean = np.nanmean(table, 0)
        boot = np.nanmean(table[samples, 0], axis=1)
        low, high = np.nanpercentile(boot, [2.5, 97.5])
        gap = tables["default"][:, 0] - table[:, 0]
        gap_low, gap_high = np.nanpercentile(np.nanmean(gap[samples], axis=1), [2.5, 97.5])
        result["ways"][name] = {
            "questions": int(have.sum()), "recall@10": mean[0], "interval": [low, high], "hit@10": mean[1],
            "ndcg@10": mean[2], "default_less": np.nanmean(gap), "default_less_interval": [gap_low, gap_high],
        }  # fmt: skip
        only = "" if have.all() else f"  ({int(have.sum())} questions)"
        print(
            f"{name:42} {mean[0]:.3f} [{low:.3f}, {high:.3f}]  {mean[1]:.3f}   {mean[2]:.3f}    "
            f"{np.nanmean(gap):+.3f} [{gap_low:+.3f}, {gap_high:+.3f}]{only}"
        )
    result["by_kind"] = {
        kind: {
            name: float(np.nanmean(table[np.array(kinds) == kind, 0]))
            for name, table in tables.items()
            if np.isfinite(table[np.array(kinds) == kind, 0]).any()
        }
        for kind in sorted(set(kinds))
    }
    result["switched"] = compare_switches(loaded, generator)
    result["near_duplicates"] = near_duplicates(loaded)
    print("near-duplicates by cosine from 0.95:", result["near_duplicates"])
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
