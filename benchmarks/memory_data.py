"""Conversations with questions and the turns that answer them: BEAM's files, and the short ones of examples/data."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lam_transformers.io.files import read_records


@dataclass(frozen=True)
class Question:
    """kind: of question; text; evidence: places of the messages that answer it."""

    kind: str
    text: str
    evidence: frozenset[int]


@dataclass(frozen=True)
class Conversation:
    """texts and roles of its messages, in order, and the questions that have evidence."""

    texts: list[str]
    roles: list[str]
    questions: list[Question]


def read_conversations(path: Path) -> Iterator[Conversation]:
    """The conversations of a file: .txt as examples/data/conversations.txt explains, or JSON lines as BEAM's."""
    yield from _own(path) if path.suffix == ".txt" else map(_beam, read_records(path))


def _beam(record: dict) -> Conversation:
    messages = record["messages"]
    place = {message["id"]: i for i, message in enumerate(messages)}
    questions = [
        Question(kind, question["question"], evidence)
        for kind, group in sorted(record["probing_questions"].items())
        for question in group
        if (evidence := frozenset(place[i] for i in _ids(question.get("source_chat_ids")) if i in place))
    ]
    return Conversation([m["content"] for m in messages], [m["role"] for m in messages], questions)


def _ids(value) -> set[int]:
    """The numbers in a number, a string, a list or a dictionary of such."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return set().union(*map(_ids, value))
    if isinstance(value, str):
        return {int(value)} if value.isdigit() else set()
    return set() if value is None or isinstance(value, bool) else {int(value)}


def _own(path: Path) -> Iterator[Conversation]:
    conversation: Conversation | None = None
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("= "):
            if conversation is not None:
                yield conversation
            conversation = Conversation([], [], [])
        elif line.startswith("? ") and conversation is not None:
            kind, question, turns = (part.strip() for part in line[2:].split("|"))
            conversation.questions.append(Question(kind, question, frozenset(map(int, turns.split(",")))))
        elif line and line[0] not in "#@" and conversation is not None:
            role, text = line.split(": ", 1)
            conversation.roles.append(role)
            conversation.texts.append(text)
    if conversation is not None:
        yield conversation
