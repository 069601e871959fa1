"""Words and BM25 against the formula written out."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lam_transformers.memories import Ranking
from lam_transformers.memories.ranking import Signals, carried_shares, scaled, scores
from lam_transformers.memories.words import K1, B, WordIndex, bm25, count_words, split_words

WORDS = st.lists(st.sampled_from(["dog", "cat", "river", "oslo", "sings", "red"]), min_size=1, max_size=8).map(" ".join)


def test_words_of_a_text():
    assert split_words("The Dogs' parties, running; caf\u00e9s!") == ["the", "dog", "party", "run", "caf"]
    assert split_words("\u5317\u4eac 2026") == ["\u5317", "\u4eac", "2026"]
    assert split_words(" ... ") == []


def plain_bm25(query, texts):
    """The formula, text by text."""
    split = [split_words(text) for text in texts]
    mean = sum(map(len, split)) / len(split)
    values = []
    for words in split:
        value = 0.0
        for word in split_words(query):
            holding = sum(word in other for other in split)
            if holding:
                rarity = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
                count = words.count(word)
                value += rarity * count * (K1 + 1) / (count + K1 * (1 - B + B * len(words) / mean))
        values.append(value)
    return values


@settings(max_examples=50, deadline=None)
@given(
    texts=st.lists(WORDS, min_size=1, max_size=12),
    query=WORDS,
    hidden=st.sets(st.integers(0, 11)),
    cut=st.integers(0, 12),
)
def test_bm25_of_what_is_visible(texts, query, hidden, cut):
    seen = [i for i in range(len(texts)) if i not in hidden]
    indexes = [WordIndex(), WordIndex()]
    WordIndex._MERGE = 5
    parts = [list(range(min(cut, len(texts)))), list(range(min(cut, len(texts)), len(texts)))]
    for index, part in zip(indexes, parts, strict=True):
        for i in part:
            index.append([count_words(texts[i])])
            if i % 3:
                index.settle()
    visible = [np.array([i in seen for i in part], bool) for part in parts]
    got = np.concatenate(bm25(query, list(zip(indexes, visible, strict=True))))
    want = np.zeros(len(texts))
    if seen:
        want[seen] = plain_bm25(query, [texts[i] for i in seen])
    assert np.allclose(got, want, atol=1e-5)


def test_the_parts_of_a_score_add_up_and_are_bounded():
    generator = np.random.default_rng(0)
    signals = Signals(
        alone=generator.normal(size=9), passage=generator.normal(size=9), carried=None,
        words=generator.random(9), lengths=np.full(9, 5), said=np.eye(9)[0], personal=np.eye(9)[1],
    )  # fmt: skip
    total, parts = scores(signals, Ranking())
    assert np.allclose(total, sum(parts.values()))
    assert abs(parts["personal"].max() - 0.05) < 1e-6
    assert parts["said"].max() <= 0.1 + 1e-6
    assert 0 <= (parts["vectors"] + parts["words"]).min() <= (parts["vectors"] + parts["words"]).max() <= 1.000001
    assert np.array_equal(scaled(np.full(3, 2.0)), np.zeros(3))
    assert len(scaled(np.zeros(0))) == 0


def test_short_turns_are_judged_in_the_light_of_their_conversation():
    lengths = np.array([0, 64, 10**9])
    assert np.allclose(carried_shares(0.5, lengths), [1.0, 0.75, 0.5])
    assert np.allclose(carried_shares(0.25, lengths), [0.5, 0.375, 0.25])
    assert np.array_equal(carried_shares(1.0, lengths), np.ones(3))
    assert np.array_equal(carried_shares(0.0, lengths), np.zeros(3))
