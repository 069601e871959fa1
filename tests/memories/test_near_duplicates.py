"""What says the same is shown as one result; what is alike but not the same is not, however near its vector is."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lam_transformers.memories import Memory, Ranking
from lam_transformers.memories.reading import Reader, Reading
from lam_transformers.memories.words import wording

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "October", "December")
NAMES = ("Ada", "Bob", "Robert", "Roberts", "James", "Jos\u00e9", "Jose", "\u738b\u82b3", "Li")
PLACES = ("Oslo", "Bergen", "Rome", "the US")
SIGNS = ("", "-", "$", "\u20ac")
TEXTS = st.builds(
    "{} meets {} on {} in {} at {}:{:02} and pays {}{}.{} for {} people from {} to {}.".format,
    *(st.sampled_from(NAMES), st.sampled_from(NAMES), st.sampled_from(DAYS), st.sampled_from(MONTHS)),
    *(st.integers(0, 23), st.integers(0, 59), st.sampled_from(SIGNS), st.integers(0, 999), st.integers(0, 99)),
    *(st.integers(1, 40), st.sampled_from(PLACES), st.sampled_from(PLACES)),
)


class OneVector(Reader):
    """A model to which all texts are the same, so that the words alone decide."""

    def query(self, text):
        return np.eye(1, self.dimension, dtype=np.float32)[0]

    def read(self, texts, passages=True):
        none = np.zeros((0, self.dimension), np.float32)
        return [Reading(self.query(text), none, np.zeros((0, 2), np.int32)) for text in texts]


@pytest.fixture(scope="module")
def alike(tiny_encoder, tmp_path_factory):
    """A memory in which the cosine of any two texts is 1."""
    place = tmp_path_factory.mktemp("alike") / "memory.db"
    with Memory(place, model=OneVector(tiny_encoder), carried=False) as memory:
        yield memory


users = map("user-{}".format, itertools.count())


def shown(memory, *texts):
    """The results of a search of a user to whom just these texts belong, each with its variants."""
    user = next(users)
    for text in texts:
        memory.add(text, user_id=user)
    return [{result.text, *(v.text for v in result.variants)} for result in memory.search("meets", user_id=user)]


def replaced(data, text, pattern, choices):
    """The text with one match of a pattern exchanged for another choice."""
    matches = list(re.finditer(pattern, text))
    assume(matches)
    match = data.draw(st.sampled_from(matches))
    other = data.draw(st.sampled_from([choice for choice in choices if choice != match[0]]))
    return text[: match.start()] + other + text[match.end() :]


CHANGES = {
    "digit": lambda data, text: replaced(data, text, r"\d", "0123456789"),
    "weekday": lambda data, text: replaced(data, text, "|".join(DAYS), DAYS),
    "month": lambda data, text: replaced(data, text, "|".join(MONTHS), MONTHS),
    "name": lambda data, text: replaced(data, text, r"^\w+", NAMES),
    "not": lambda data, text: inserted(data, text, ["not", "never", "no", "n't"]),
    "word": lambda data, text: inserted(data, text, ["almost", "only", "un", "before", "0", "?"]),
    "word left out": lambda data, text: left_out(data, text),
    "two exchanged": lambda data, text: exchanged(data, text),
    "question": lambda data, text: text[:-1] + "?",
    "sign": lambda data, text: replaced(data, text, r"(?<=pays )[-$\u20ac]?", SIGNS),
}


def inserted(data, text, words):
    split = text.split()
    split.insert(data.draw(st.integers(0, len(split))), data.draw(st.sampled_from(words)))
    return " ".join(split)


def left_out(data, text):
    split = text.split()
    del split[data.draw(st.integers(0, len(split) - 1))]
    return " ".join(split)


def exchanged(data, text):
    split = text.rstrip(".").split()
    i, j = data.draw(st.lists(st.integers(0, len(split) - 1), min_size=2, max_size=2, unique=True))
    assume(split[i].lower() != split[j].lower())
    split[i], split[j] = split[j], split[i]
    return " ".join(split)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), text=TEXTS)
@pytest.mark.parametrize("change", CHANGES)
def test_one_change_is_another_wording(change, data, text):
    assert wording(CHANGES[change](data, text)) != wording(text)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), text=TEXTS)
@pytest.mark.parametrize("change", CHANGES)
def test_one_change_keeps_two_results(alike, change, data, text):
    changed = CHANGES[change](data, text)
    assert sorted(shown(alike, text, changed), key=str) == sorted([{text}, {changed}], key=str)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_case_white_space_and_the_marks_at_the_end_of_words_do_not_count(alike, text):
    copies = {text, text.lower(), text.upper(), text.rstrip("."), text.replace(" ", "\n", 3), f" {text}!", text + ".."}
    copies = {copy for copy in copies if wording(copy) == wording(text)}  # "\u00df" and its like have no capital
    assert len(copies) >= 6
    assert shown(alike, *copies) == [copies]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("The meeting is on Monday.", "The meeting is on Tuesday."),
        ("She can come.", "She can't come."),
        ("Ada owes Bob 5.", "Bob owes Ada 5."),
        ("from Oslo to Bergen", "to Oslo from Bergen"),
        ("before lunch", "after lunch"),
        ("3.5 mg", "35 mg"),
        ("It is .5 mg.", "It is 5 mg."),
        ("minus: -5", "minus: 5"),
        ("in C", "in C++"),
        ("x\u00b2", "x2"),
        ("Ma\u00dfe", "Masse"),
        ("5%", "5"),
        ("10:30", "10.30"),
        ("He lives here.", "He lived here."),
        ("\u6211\u4f4f\u5728\u5317\u4eac\u3002", "\u6211\u4e0d\u4f4f\u5728\u5317\u4eac\u3002"),
    ],
)
def test_alike_but_not_the_same(alike, first, second):
    assert wording(first) != wording(second)
    assert len(shown(alike, first, second, first)) == 2


def test_a_copy_joins_what_says_the_same_and_not_what_is_nearest(alike):
    days = [f"Ada comes on {day}." for day in DAYS]
    assert sorted(map(sorted, shown(alike, *days, *(day.lower() for day in days)))) == sorted(
        sorted({day, day.lower()}) for day in days
    )


def test_the_cosine_counts_too(memory):
    memory.add("The dog sleeps.", user_id="ada")
    memory.add("The dog sleeps!!!", user_id="ada")
    strict, loose = (memory.search("dog", user_id="ada", ranking=Ranking(duplicates=x)) for x in (1.0, 0.5))
    assert len(strict) == 2
    assert len(loose) == 1


def test_others_copies_stay_others(alike):
    user = next(users)
    alike.add("Ada meets Bob.", user_id=user)
    alike.add("Ada meets Bob.")
    results = alike.search("meets", user_id=user)
    assert [result.memory.user_id for result in results] == [user, None]
    alike.delete(results[1].id)
