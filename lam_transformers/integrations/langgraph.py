"""LangGraph's long-term store, kept in a memory of LAM: items that are found by what they say, offline."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from langgraph.store.base import (
    BaseStore,
    GetOp,
    InvalidNamespaceError,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    get_text_at_path,
)

from ..memories import Memory
from ..memories.records import LONGEST_ID, Scope, as_datetime, check_name
from ..memories.rows import record_of
from ..memories.searching import Question, search

Namespace = tuple[str, ...]
_COLUMNS = (
    "m.id, m.text, m.kind, m.version, m.user_id, m.agent_id, m.run_id, m.role, m.time, m.superseded, m.key, "
    "m.position, m.document_id, m.start_at, m.end_at, m.metadata, "
    "(SELECT MIN(o.time) FROM memories o WHERE o.id = m.id)"
)


class LAMStore(BaseStore):
    """A `BaseStore` whose items are memories, in SQLite or PostgreSQL.

    An item is one memory: its text is what the indexed fields say, one after the other, and is found by vectors and
    words; its value, which is stored as JSON, comes back as it was put. Putting again makes a new version
    (`Memory.history` has the earlier ones), deleting forgets all of them. Items of two namespaces never mix, however
    their labels read. A search with a query ranks the items below its prefix; those that were put with `index=False`
    are only found without one. Without a query, what was put last comes first. In a batch the reads come before the
    writes, and of several writes to one item the last one counts.

    Items do not expire: `ttl` is refused.

    Args:
        memory: where the items are; other things in it are not touched, and are not found through the store.
        user_id: the user of the memory whose the items are. With that of a person, `memory.search(user_id=...)` finds
            them among what the person said.
        agent_id: the name under which the store keeps them apart from the user's other memories.
        fields: paths of the fields that are indexed by default, such as "text" or "chapters[*].title"; "$" is all.
    """

    def __init__(
        self,
        memory: Memory,
        *,
        user_id: str = "langgraph",
        agent_id: str = "langgraph",
        fields: list[str] | None = None,
    ) -> None:
        self.memory = memory
        self.fields = fields or ["$"]
        self._scope = Scope.of(user_id, agent_id)

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """See `BaseStore.batch`.

        Raises:
            InvalidNamespaceError: for a namespace that cannot be stored.
            NotImplementedError: for an item that should expire.
            ValueError: for a key or value that cannot be stored, a filter or a page that there is not.
        """
        results: list[Result] = []
        writes: dict[tuple[Namespace, str], PutOp] = {}
        for op in ops:
            result: Result = None
            if isinstance(op, PutOp):
                if op.ttl is not None:
                    raise NotImplementedError("Items of LAMStore do not expire; leave ttl out, or delete them.")
                _path(op.namespace, op.key)
                writes[op.namespace, op.key] = op
            elif isinstance(op, GetOp):
                result = next((item for _, item, _ in self._rows("m.key = ?", _path(op.namespace, op.key))), None)
            elif isinstance(op, SearchOp):
                result = self._search(op)
            elif isinstance(op, ListNamespacesOp):
                result = self._namespaces(op)  # type: ignore[assignment]
            else:
                raise ValueError(f"LAMStore knows no operation {type(op).__name__}.")
            results.append(result)
        for op in writes.values():
            self._write(op)
        return results

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """See `batch`, which is run in a thread."""
        return await asyncio.to_thread(self.batch, list(ops))

    def _rows(self, where: str, *values: Any) -> list[tuple[str, SearchItem, bool]]:
        """(id of the memory, item, whether it is indexed) of the items that meet a condition, the last put first."""
        with self.memory.store.read() as transaction:
            rows = transaction.rows(
                f"SELECT {_COLUMNS} FROM memories m WHERE m.user_id = ? AND m.agent_id = ? AND m.kind = 'memory' "
                f"AND m.key IS NOT NULL AND m.superseded IS NULL AND {where} ORDER BY m.row_id DESC",
                *(self._scope.user_id, self._scope.agent_id, *values),
            )
        items = []
        for row in rows:
            record = record_of(row[:-1])
            if "namespace" not in record.metadata:
                continue  # a memory of the same assistant that the store did not write
            stored = record.metadata
            item = SearchItem(
                namespace=tuple(stored["namespace"]),
                key=stored["key"],
                value=stored["value"],
                created_at=as_datetime(row[-1]),
                updated_at=record.time,
            )
            items.append((record.id, item, stored["indexed"]))
        return items

    def _below(self, prefix: Namespace) -> list[tuple[str, SearchItem, bool]]:
        path = _path(prefix)
        return self._rows("substr(m.run_id, 1, ?) = ?", len(path), path)

    def _search(self, op: SearchOp) -> list[SearchItem]:
        if op.limit < 0 or op.offset < 0:
            raise ValueError(f"limit and offset must be 0 or more, got {op.limit} and {op.offset}.")
        rows = [row for row in self._below(op.namespace_prefix) if _matches(row[1].value, op.filter or {})]
        if op.query is None or not op.query.strip():
            return [item for _, item, _ in rows[op.offset : op.offset + op.limit]]
        items = {id: item for id, item, indexed in rows if indexed}
        if not items or not op.limit:
            return []
        # What reads alike is no less an item of its own, and all of them belong to the same user and assistant.
        ranking = replace(self.memory.ranking, duplicates=None)
        question = Question.of(op.query, self._scope, 1, ("memory",), None, None, None, False, ranking)
        question = replace(question, top_k=op.offset + op.limit, only=frozenset(items))
        answers = [(answer.score, items[answer.id]) for answer in search(self.memory.engine, question)]
        return [SearchItem(**_fields(item), score=score) for score, item in answers[op.offset :]]

    def _namespaces(self, op: ListNamespacesOp) -> list[Namespace]:
        with self.memory.store.read() as transaction:
            rows = transaction.rows(
                "SELECT DISTINCT run_id FROM memories WHERE user_id = ? AND agent_id = ? AND kind = 'memory' "
                "AND key IS NOT NULL AND superseded IS NULL AND run_id <> ''",
                *(self._scope.user_id, self._scope.agent_id),
            )
        namespaces = {_namespace(row[0]) for row in rows}
        for condition in op.match_conditions or ():
            namespaces = {namespace for namespace in namespaces if _fits(namespace, condition)}
        listed = sorted({namespace[: op.max_depth] for namespace in namespaces})
        return listed[op.offset : op.offset + op.limit]

    def _write(self, op: PutOp) -> None:
        path = _path(op.namespace, op.key)
        scoped = self.memory.within(
            user_id=self._scope.user_id, agent_id=self._scope.agent_id, run_id=_path(op.namespace)
        )
        if op.value is None:
            for id, _, _ in self._rows("m.key = ?", path):
                scoped.delete(id)
            return
        value = dict(op.value)
        texts = [] if op.index is False else _texts(value, self.fields if op.index is None else op.index)
        # An item that says nothing is kept under its name.
        text = "\n\n".join(texts) or f"{'/'.join(op.namespace)}: {op.key}"
        stored = {"namespace": list(op.namespace), "key": op.key, "value": value, "indexed": bool(texts)}
        scoped.add(text, key=path, metadata=stored)


def _fields(item: Item) -> dict[str, Any]:
    return {name: getattr(item, name) for name in ("namespace", "key", "value", "created_at", "updated_at")}


def _escaped(label: str) -> str:
    return label.replace("%", "%25").replace("/", "%2F")


def _path(namespace: Namespace, key: str | None = None) -> str:
    """Labels and key in one string, in which the path of a namespace begins those of all below it, and no others.

    Raises:
        InvalidNamespaceError: for labels that are no strings, and for what cannot be stored.
    """
    if not all(isinstance(label, str) for label in namespace):
        raise InvalidNamespaceError(f"Labels of a namespace must be strings, got {namespace!r}.")
    path = "".join(_escaped(label) + "/" for label in namespace) + ("" if key is None else _escaped(key))
    if not path:
        return ""
    what = "The namespace" if key is None else "The namespace with its key"
    try:
        return check_name(what, path)
    except ValueError as error:
        if len(path) > LONGEST_ID:
            begin = f"{what} {path[:40]}... has {len(path):,} characters"
            raise InvalidNamespaceError(f"{begin}, at most {LONGEST_ID:,} can be stored; shorten it.") from error
        raise InvalidNamespaceError(str(error)) from error


def _namespace(path: str) -> Namespace:
    return tuple(label.replace("%2F", "/").replace("%25", "%") for label in path.split("/")[:-1])


def _fits(namespace: Namespace, condition: MatchCondition) -> bool:
    """Whether a namespace begins or ends as asked for; "*" is any label."""
    count = len(condition.path)
    if condition.match_type not in ("prefix", "suffix"):
        raise ValueError(f"Namespaces are matched by prefix or suffix, not by {condition.match_type!r}.")
    part = namespace[:count] if condition.match_type == "prefix" else namespace[len(namespace) - count :]
    return len(namespace) >= count and all(
        wanted in ("*", label) for label, wanted in zip(part, condition.path, strict=True)
    )


def _matches(value: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether the fields of a value are those of a filter."""
    return all(_meets(value.get(name), condition) for name, condition in wanted.items())


def _meets(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        if any(name.startswith("$") for name in wanted):
            return all(_compared(value, operator, other) for operator, other in wanted.items())
        return isinstance(value, Mapping) and _matches(value, wanted)
    if isinstance(wanted, list | tuple):
        same = isinstance(value, list | tuple) and len(value) == len(wanted)
        return same and all(_meets(one, other) for one, other in zip(value, wanted, strict=True))
    return bool(value == wanted)


def _compared(value: Any, operator: str, other: Any) -> bool:
    if operator in ("$eq", "$ne"):
        return (value == other) == (operator == "$eq")
    if operator not in ("$gt", "$gte", "$lt", "$lte"):
        raise ValueError(f"Filters know $eq, $ne, $gt, $gte, $lt and $lte, not {operator!r}.")
    try:
        one = float(value)
    except (TypeError, ValueError):
        return False  # what is no number is neither more nor less than one
    two = float(other)
    return {"$gt": one > two, "$gte": one >= two, "$lt": one < two, "$lte": one <= two}[operator]


def _texts(value: dict[str, Any], fields: list[str]) -> list[str]:
    """What the fields of a value say; fields that it does not have say nothing."""
    texts: list[str] = []
    for field in fields:
        texts += [_said(value)] if field == "$" else get_text_at_path(value, field)
    return [text for text in texts if text.strip()]


def _said(value: Any) -> str:
    """A JSON value in plain text: a line for each field."""
    if isinstance(value, Mapping):
        lines = ((name, _said(part)) for name, part in value.items())
        return "\n".join(f"{name}: {part}" for name, part in lines if part)
    if isinstance(value, list | tuple):
        return ", ".join(filter(None, map(_said, value)))
    return "" if value is None else str(value)
