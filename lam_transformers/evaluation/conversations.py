"""Conversations with questions and the turns that answer them: files as BEAM's and LoCoMo's, and the project's own."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..io.files import read_records

# LoCoMo's numbers of the kinds of question.
LOCOMO_KINDS = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}


@dataclass(frozen=True)
class Question:
    """A question about a conversation.

    Attributes:
        kind: of question, as the file names it.
        text: of the question.
        evidence: places, in the conversation, of the turns that answer it; at least one.
    """

    kind: str
    text: str
    evidence: frozenset[int]


@dataclass(frozen=True)
class Conversation:
    """A conversation and what is asked about it.

    Attributes:
        texts: of the turns, in order, none of them blank.
        roles: who said each.
        sessions: number of the session of each, which never falls.
        questions: those that have evidence.
    """

    texts: list[str] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    sessions: list[int] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)

    def parts(self) -> Iterator[range]:
        """The places of each session's turns."""
        start = 0
        for place in range(1, len(self.texts) + 1):
            if place == len(self.texts) or self.sessions[place] != self.sessions[start]:
                yield range(start, place)
                start = place


def read_conversations(path: Path) -> Iterator[Conversation]:
    """The conversations of a file.

    Args:
        path: JSON lines, each a conversation as BEAM (messages, probing_questions) or LoCoMo (conversation, qa) has
            it; or .txt as examples/data/conversations.txt explains.

    Yields:
        each conversation.

    Raises:
        ValueError: for a record of another shape, naming the file.
        OSError: if the file cannot be read.
    """
    if path.suffix == ".txt":
        yield from _own(path)
        return
    for number, record in enumerate(read_records(path)):
        if "messages" in record and "probing_questions" in record:
            yield _beam(record)
        elif "conversation" in record and "qa" in record:
            yield _locomo(record)
        else:
            raise ValueError(
                f"{path}: record {number} has the fields {', '.join(sorted(record)[:6])}; a conversation has messages "
                "and probing_questions (BEAM) or conversation and qa (LoCoMo)."
            )


class _Turns:
    """Collects the turns of a conversation, and where each of them is, by the id that its file gives it."""

    def __init__(self) -> None:
        self.conversation = Conversation()
        self.places: dict[str, int] = {}

    def add(self, id: str, role: str, text: str, session: int) -> None:
        if not text.strip():
            return
        self.places[id] = len(self.conversation.texts)
        self.conversation.texts.append(text)
        self.conversation.roles.append(role)
        self.conversation.sessions.append(session)

    def ask(self, kind: str, text: str, ids: Iterator[str]) -> None:
        evidence = frozenset(self.places[id] for id in ids if id in self.places)
        if evidence and text.strip():
            self.conversation.questions.append(Question(kind, text, evidence))


def _beam(record: dict[str, Any]) -> Conversation:
    turns = _Turns()
    session = 0
    anchor = None
    for message in record["messages"]:
        given = message.get("time_anchor")
        if given and given != anchor:
            session += anchor is not None
            anchor = given
        turns.add(str(message["id"]), message["role"], message["content"] or "", session)
    for kind, questions in sorted(record["probing_questions"].items()):
        for question in questions:
            turns.ask(kind, question["question"], _numbers(question.get("source_chat_ids")))
    return turns.conversation


def _numbers(value: Any) -> Iterator[str]:
    """The whole numbers in a number, a string, a list or a dictionary of such."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _numbers(part)
    elif (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, str) and value.isdigit()):
        yield str(int(value))


def _locomo(record: dict[str, Any]) -> Conversation:
    turns = _Turns()
    said = record["conversation"]
    sessions = sorted(int(match[1]) for name in said if (match := re.fullmatch(r"session_(\d+)", name)))
    for session in sessions:
        for turn in said[f"session_{session}"]:
            caption = turn.get("blip_caption")
            text = turn.get("text") or ""
            turns.add(turn["dia_id"], turn["speaker"], f"{text} [image: {caption}]" if caption else text, session)
    for question in record["qa"]:
        kind = LOCOMO_KINDS.get(question.get("category"), str(question.get("category")))
        # Some are written "D8:6; D9:17" in one string.
        ids = re.findall(r"D\d+:\d+", " ".join(map(str, question.get("evidence") or [])))
        turns.ask(kind, str(question["question"]), iter(ids))
    return turns.conversation


def _own(path: Path) -> Iterator[Conversation]:
    turns: _Turns | None = None
    session = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("= "):
            if turns is not None:
                yield turns.conversation
            turns = _Turns()
            session = 0
        elif turns is None:
            continue
        elif line.startswith("@"):
            session += bool(turns.places)
        elif line.startswith("? "):
            kind, question, places = (part.strip() for part in line[2:].split("|"))
            turns.ask(kind, question, (place.strip() for place in places.split(",")))
        elif line and line[0] != "#":
            role, text = line.split(": ", 1)
            turns.add(str(len(turns.places)), role, text, session)
    if turns is not None:
        yield turns.conversation
