"""Texts of the toy vocabulary, and a key."""

import random

KEY = "a-key-for-tests"
WORDS = ("the", "man", "woman", "dog", "cat", "child", "plays", "runs", "sleeps", "eats", "sings", "house", "river")


def words(count: int, seed: int = 0) -> str:
    """A text of that number of words."""
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def sentences(count: int, seed: int = 0) -> list[str]:
    """Texts of 1 to 40 words."""
    lengths = random.Random(seed)
    return [words(lengths.randint(1, 40), seed * 1000 + i) for i in range(count)]
