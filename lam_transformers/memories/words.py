"""The words of a text, and BM25 over them.

Both stores keep, with every memory, the words it holds as numbers: a 64-bit hash of each word's stem and how often it
occurs. Scores are computed from these in NumPy, over what the one who asks may see and nothing else, so that SQLite and
PostgreSQL give the same scores, another user's words change none of them, no word is left in an index after its memory
was deleted, and a query has no syntax that could be misread. (SQLite's own FTS5 was measured first, on 30,000 turns of
35 words: its `bm25` took 180 to 490 ms for a question in which common words stand, and before SQLite 3.42 it keeps the
words of deleted rows until the whole index is merged.)
"""

import functools
import hashlib
import re
import unicodedata
from collections import Counter

import numpy as np

# Found on BEAM 100K, whose messages differ in length more than tenfold; on short turns they cost next to nothing.
K1 = 2.0
B = 0.9
# One entry of a memory's words: hash of the stem, number of occurrences.
ENTRY = np.dtype([("word", "<u8"), ("count", "<u4")])

# A run of letters and digits, or one character of a script that is written without spaces.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+"
)
_LONGEST = 64  # characters of a word that count
_END_MARKS = (
    ".,;:!\u2026\u3002\uff0c\u3001\uff1b\uff1a\uff01"  # of a sentence or its parts, also in Chinese and Japanese
)


@functools.lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """A word without its plural and the commonest English endings; other words stay as they are."""
    if len(word) < 4 or not word.isascii() or not word.isalpha():
        return word
    if word.endswith("ies") and len(word) > 4:
        word = word[:-3] + "y"
    elif word.endswith("es") and word[-3] in "sxzh":
        word = word[:-2]
    elif word.endswith("s") and word[-2] not in "su":
        word = word[:-1]
    for ending in ("ing", "ed"):
        rest = word[: -len(ending)]
        if word.endswith(ending) and len(rest) >= 3 and re.search("[aeiouy]", rest):
            word = rest[:-1] if rest[-1] == rest[-2] and rest[-1] not in "lsz" else rest
            break
    return word[:-1] if len(word) > 3 and word.endswith("e") else word


def split_words(text: str) -> list[str]:
    """The stems of a text's words, in order: lower case, without accents."""
    text = unicodedata.normalize("NFKD", text.casefold())
    text = "".join(c for c in text if not unicodedata.combining(c)) if not text.isascii() else text
    return [stem(word[:_LONGEST]) for word in _WORD.findall(text)]


def wording(text: str) -> tuple[str, ...]:
    """The words of a text in order, as they were said: two texts of the same wording say the same.

    Upper and lower case, white space and the marks .,;:! at the end of a word do not count, and nothing else is passed
    over: another number, name, day, "not", order or question mark is another wording. There is no list of words that
    are thought not to matter, because in some text they do ("to Oslo from Bergen", "from Oslo to Bergen").
    """
    # Not casefold, to which "Maße" and "Masse" are the same, nor NFKC, to which "x²" and "x2" are.
    words = unicodedata.normalize("NFC", text).lower().split()
    return tuple(word for word in (word.rstrip(_END_MARKS) for word in words) if word)


@functools.lru_cache(maxsize=1 << 16)
def word_number(word: str) -> int:
    """64-bit hash of a word."""
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def count_words(text: str) -> np.ndarray:
    """The words of a text as an array of `ENTRY`, sorted by hash."""
    counts = Counter(map(word_number, split_words(text)))
    return np.array(sorted(counts.items()), dtype=ENTRY)


class WordIndex:
    """Which of the numbered texts hold which words; texts are only ever appended.

    Attributes:
        lengths: number of words of each text, [texts] int64.
    """

    _MERGE = 4096  # entries after which the unsorted rest is sorted in

    def __init__(self) -> None:
        self._sorted = _Postings.of(np.zeros(0, ENTRY), np.zeros(0, np.int32))
        self._rest: list[tuple[np.ndarray, np.ndarray]] = []
        self._rest_size = 0
        self.lengths = np.zeros(0, np.int64)

    def copy(self) -> "WordIndex":
        """The same index as it is now: what is appended to either does not appear in the other."""
        other = WordIndex()
        other._sorted = self._sorted
        other._rest = list(self._rest)
        other._rest_size = self._rest_size
        other.lengths = self.lengths
        return other

    def append(self, texts: list[np.ndarray]) -> None:
        """texts: the words of each new text (`count_words`)."""
        first = len(self.lengths)
        lengths = np.array([int(entries["count"].sum()) for entries in texts], dtype=np.int64)
        owners = np.repeat(np.arange(first, first + len(texts), dtype=np.int32), [len(x) for x in texts])
        if texts:
            self._rest.append((np.concatenate(texts), owners))
            self._rest_size += len(owners)
        self.lengths = np.concatenate([self.lengths, lengths])

    def settle(self) -> None:
        """Sort in what was appended, once it is much: until then it is searched word by word."""
        if self._rest_size > max(self._MERGE, self._sorted.size // 4):
            self._merge()

    def _merge(self) -> None:
        entries = np.concatenate([entries for entries, _ in self._rest])
        owners = np.concatenate([owners for _, owners in self._rest])
        self._sorted = self._sorted.joined(_Postings.of(entries, owners))
        self._rest = []
        self._rest_size = 0

    def occurrences(self, word: int) -> tuple[np.ndarray, np.ndarray]:
        """The texts that hold a word, and how often."""
        parts = [self._sorted.of_word(word)]
        for entries, owners in self._rest:
            here = entries["word"] == word
            parts.append((owners[here], entries["count"][here]))
        return np.concatenate([owners for owners, _ in parts]), np.concatenate([counts for _, counts in parts])


def bm25(query: str, parts: list[tuple[WordIndex, np.ndarray]]) -> list[np.ndarray]:
    """BM25 of texts in one or more indexes for a query; 0 for those that are not visible.

    Args:
        query: plain text.
        parts: an index and which of its texts may be seen, [texts] bool. Document frequencies and the mean length are
            those of the visible texts of all parts together.

    Returns:
        [texts] float32 for each part.
    """
    scores = [np.zeros(len(index.lengths), np.float32) for index, _ in parts]
    total = sum(int(visible.sum()) for _, visible in parts)
    if not total:
        return scores
    mean_length = max(sum(float(index.lengths[visible].sum()) for index, visible in parts) / total, 1e-9)
    for word, times in Counter(map(word_number, split_words(query))).items():
        places = []
        for index, visible in parts:
            owners, counts = index.occurrences(word)
            kept = visible[owners]
            places.append((owners[kept], counts[kept].astype(np.float32)))
        texts = sum(len(owners) for owners, _ in places)
        if not texts:
            continue
        rarity = np.log(1 + (total - texts + 0.5) / (texts + 0.5))
        for (index, _), (owners, counts), sums in zip(parts, places, scores, strict=True):
            normal = counts + K1 * (1 - B + B * index.lengths[owners] / mean_length)
            sums[owners] += (times * rarity * counts * (K1 + 1) / normal).astype(np.float32)
    return scores


class _Postings:
    """Entries sorted by word, with the texts that hold them.

    Attributes:
        numbers: [entries] the words, in order.
        owners: [entries] the text of each.
        counts: [entries] float32, how often the text holds the word.
    """

    def __init__(self, numbers: np.ndarray, owners: np.ndarray, counts: np.ndarray) -> None:
        order = np.argsort(numbers, kind="stable")
        self.numbers = numbers[order]
        self.owners = owners[order]
        self.counts = counts[order]

    @classmethod
    def of(cls, entries: np.ndarray, owners: np.ndarray) -> "_Postings":
        return cls(entries["word"], owners, entries["count"].astype(np.float32))

    def joined(self, other: "_Postings") -> "_Postings":
        """Both together; the sort is a merge of two runs that are in order."""
        return _Postings(
            np.concatenate([self.numbers, other.numbers]),
            np.concatenate([self.owners, other.owners]),
            np.concatenate([self.counts, other.counts]),
        )

    @property
    def size(self) -> int:
        return len(self.numbers)

    def of_word(self, word: int) -> tuple[np.ndarray, np.ndarray]:
        start = np.searchsorted(self.numbers, np.uint64(word), "left")
        end = np.searchsorted(self.numbers, np.uint64(word), "right")
        return self.owners[start:end], self.counts[start:end]
