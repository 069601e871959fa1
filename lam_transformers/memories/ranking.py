"""How the results of a search are ordered: cosines and BM25 fused, and bounded boosts on top.

The numbers of the defaults were found on BEAM 100K and on the short conversations of `examples/data`; docs/MEMORY.md
has the measurements.
"""

from dataclasses import dataclass

import numpy as np

SHORT = 64  # words at which a text's carried share is halfway between that of a short and of a long text


@dataclass(frozen=True)
class Ranking:
    """What counts for a score, and how much.

    Attributes:
        words: weight of BM25, 0 to 1; the vectors have the rest.
        passages: let the best passage of a long text speak for it, where that is nearer than the whole.
        carried: share of the carried vector in the cosine of a long text, where one was stored; of a short one up to
            twice as much (`carried_shares`).
        personal: what a memory of the user gains over a shared one at most; half of it for one of the assistant.
        said: what a user's own turn gains over an assistant's.
        duplicates: cosine from which on two results of one user are shown as one if they also say the same in the same
            words (`words.wording`), or None. The cosine alone tells no changed number, day or name from a copy.
        strengths: what a memory of full strength gains at most, where strengths are kept.
    """

    words: float = 0.4
    passages: bool = False
    carried: float = 0.5
    personal: float = 0.05
    said: float = 0.1
    duplicates: float | None = 0.95
    strengths: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (("words", 1), ("carried", 1), ("personal", 0.5), ("said", 0.5), ("strengths", 0.5)):
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise ValueError(f"Ranking's {name} must be from 0 to {most}, got {value!r}.")
        if self.duplicates is not None and not 0.5 <= self.duplicates <= 1:
            raise ValueError(f"Ranking's duplicates must be a cosine from 0.5 to 1 or None, got {self.duplicates!r}.")


@dataclass
class Signals:
    """What is known of the texts that may be seen, for one query; arrays [texts].

    Attributes:
        alone: cosine with the text's vector, or None without vectors.
        passage: cosine with its best passage, `alone` where it has none.
        carried: cosine with its carried vector, or None.
        words: BM25.
        lengths: number of words.
        said: whether the user said it.
        personal: 1 for a memory of the user, 0.5 for one of the assistant, 0 for a shared one.
    """

    alone: np.ndarray | None
    passage: np.ndarray | None
    carried: np.ndarray | None
    words: np.ndarray
    lengths: np.ndarray
    said: np.ndarray
    personal: np.ndarray


def scores(signals: Signals, ranking: Ranking) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The score [texts] of each text, and its parts by name, which add up to it."""
    words = scaled(signals.words, lowest=0.0)
    weight = 1.0
    vectors = np.zeros_like(words)
    if signals.alone is not None and signals.passage is not None:
        cosines = signals.passage if ranking.passages else signals.alone
        if ranking.carried and signals.carried is not None:
            shares = carried_shares(ranking.carried, signals.lengths)
            cosines = (1 - shares) * cosines + shares * signals.carried
        vectors = scaled(cosines)
        weight = ranking.words
    parts = {
        "vectors": (1 - weight) * vectors,
        "words": weight * words,
        "personal": ranking.personal * signals.personal,
        "said": ranking.said * signals.said,
    }
    return sum(parts.values(), np.zeros_like(words)), parts


def carried_shares(carried: float, lengths: np.ndarray) -> np.ndarray:
    """The shares [texts] of the carried vectors, 0 to 1, in the cosines of texts of so many words [texts].

    A short turn says little without what was said before it, a long one speaks for itself: from twice `carried`, at
    most 1, for no words to `carried` for many.
    """
    return np.minimum(carried * (1 + SHORT / (SHORT + lengths)), 1.0).astype(np.float32)


def scaled(values: np.ndarray, lowest: float | None = None) -> np.ndarray:
    """Values brought to 0..1, from their lowest (or the given one) to their highest."""
    if not len(values):
        return values.astype(np.float32)
    low = float(values.min()) if lowest is None else lowest
    span = float(values.max()) - low
    return ((values - low) / span if span > 0 else np.zeros(len(values))).astype(np.float32)
