"""The account of a conversion: what is in the files, what is there twice, what inference needs; numbers by counting."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .layout import EMBEDDINGS, Place, place_of
from .pickles import Checkpoint

# Values that are compared at a time: small enough that no copy of a large table is made.
BLOCK = 1 << 20


@dataclass
class Entry:
    """One named tensor of one file."""

    file: str
    name: str
    tensor: torch.Tensor
    place: Place

    @property
    def size(self) -> int:
        return self.tensor.numel()

    @property
    def storage(self) -> int:
        return self.tensor.untyped_storage().data_ptr()


@dataclass
class Pair:
    """An entry that is dropped, and the one that is kept in its place.

    Attributes:
        dropped: the entry that is not needed.
        kept: the one that is.
        how: how it was found out that they are one, or why the other one counts.
    """

    dropped: Entry
    kept: Entry
    how: str


@dataclass
class Account:
    """Every entry of the files, in exactly one of four lists.

    Attributes:
        kept: what inference needs, once.
        duplicates: aliases by storage and copies by value, with what they repeat.
        replaced: a base model's tensors for which the trained file has its own.
        unused: what inference does not need.
    """

    kept: list[Entry] = field(default_factory=list)
    duplicates: list[Pair] = field(default_factory=list)
    replaced: list[Pair] = field(default_factory=list)
    unused: list[Entry] = field(default_factory=list)

    @property
    def entries(self) -> list[Entry]:
        return [*self.kept, *self.unused, *(pair.dropped for pair in (*self.duplicates, *self.replaced))]

    @property
    def unique(self) -> list[Entry]:
        return [*self.kept, *self.unused, *(pair.dropped for pair in self.replaced)]

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Role -> tensor of what is kept."""
        return {entry.place.role: entry.tensor for entry in self.kept}


def take_account(checkpoints: Sequence[Checkpoint], drop: Iterable[str] = ()) -> Account:
    """Sort every tensor of the files into an account.

    Args:
        checkpoints: the trained file first, then its base; where both have a tensor, the first one's is kept.
        drop: beginnings of names that no published checkpoint has and that may be left out.

    Raises:
        ValueError: for a name without a place, NaN or Inf in a tensor of the model, or two copies that differ.
    """
    account = Account()
    chosen: dict[str, Entry] = {}
    for checkpoint in checkpoints:
        by_role: dict[str, list[Entry]] = defaultdict(list)
        for entry in _entries(checkpoint, tuple(drop)):
            by_role[entry.place.role].append(entry)
        check_finite(entry for copies in by_role.values() for entry in copies)
        for role, copies in by_role.items():
            first, *others = sorted(copies, key=_rank)
            account.duplicates += [Pair(other, first, compare(first, other)) for other in others]
            if not first.place.needed:
                account.unused.append(first)
            elif role in chosen:
                account.replaced.append(Pair(first, chosen[role], "the trained file has its own"))
            else:
                chosen[role] = first
                account.kept.append(first)
    return account


def _entries(checkpoint: Checkpoint, drop: tuple[str, ...]) -> Iterator[Entry]:
    unknown = []
    for name, tensor in checkpoint.tensors.items():
        place = place_of(name)
        if place is None and drop and name.startswith(drop):
            place = Place(name, "left out on request", "training", needed=False, training=True)
        if place is None:
            unknown.append(name)
        else:
            yield Entry(checkpoint.path.name, name, tensor, place)
    if unknown:
        unknown.sort()
        shown = ", ".join(unknown[:4])
        first = unknown[0].split(".")[0]
        raise ValueError(
            f"{checkpoint.path} holds {len(unknown)} tensors that no published checkpoint has, such as {shown}. If "
            f"they are not part of the model, leave them out with --drop {first}."
        )


def _rank(entry: Entry) -> tuple[bool, str]:
    """The teacher's own tensor counts as the original, the second name as the duplicate."""
    return not entry.name.startswith(("teacher_model.", "encoder.")), entry.name


def check_finite(entries: Iterable[Entry]) -> None:
    """Raise ValueError that names a tensor of the model with NaN or Inf, or of integers."""
    seen: set[tuple[object, ...]] = set()
    for entry in entries:
        x = entry.tensor
        key = (entry.storage, x.storage_offset(), entry.size)
        if entry.place.training or key in seen or entry.place.role == "position_ids":
            continue
        seen.add(key)
        if not x.is_floating_point():
            raise ValueError(f"{entry.name} of {entry.file} holds {x.dtype}, expected floating-point numbers.")
        bad = sum(int((~block.isfinite()).sum()) for block in x.reshape(-1).split(BLOCK))
        if bad:
            raise ValueError(
                f"{entry.name} of {entry.file} has {bad:,} values that are NaN or Inf; the file is damaged."
            )


def compare(first: Entry, other: Entry) -> str:
    """How two entries of one role are the same; ValueError with the largest difference if they are not."""
    a = first.tensor
    b = other.tensor
    if a.shape != b.shape:
        raise ValueError(
            f"{first.name} and {other.name} of {first.file} should be one tensor but have shapes {list(a.shape)} and "
            f"{list(b.shape)}."
        )
    if (a.data_ptr(), a.stride(), a.dtype) == (b.data_ptr(), b.stride(), b.dtype):
        return "same storage"
    blocks = zip(a.reshape(-1).split(BLOCK), b.reshape(-1).split(BLOCK), strict=True)
    if a.dtype == b.dtype and all(torch.equal(x, y) for x, y in blocks):
        return "equal values"
    blocks = zip(a.reshape(-1).split(BLOCK), b.reshape(-1).split(BLOCK), strict=True)
    largest = max((float((x.double() - y.double()).abs().max()) for x, y in blocks if x.numel()), default=0.0)
    if largest == 0:
        return "equal values"
    raise ValueError(
        f"{first.name} and {other.name} of {first.file} should be one tensor but differ by up to {largest:.6g}. "
        "Nothing tells which is right; remove the wrong one from the file."
    )


def entries_of(entries: Iterable[Entry]) -> int:
    """The number of numbers that they hold together."""
    return sum(entry.size for entry in entries)


def bytes_of(entries: Iterable[Entry]) -> int:
    """The number of bytes that they take when each is written by itself."""
    return sum(entry.size * entry.tensor.element_size() for entry in entries)


def component_table(entries: Iterable[Entry], line: str = "part") -> dict[str, dict[str, int]]:
    """Tensors and entries by `line`, "part" or "family" of their places."""
    table: dict[str, dict[str, int]] = {}
    for entry in entries:
        row = table.setdefault(getattr(entry.place, line), {"tensors": 0, "entries": 0})
        row["tensors"] += 1
        row["entries"] += entry.size
    return table


def account_report(account: Account) -> dict[str, Any]:
    """The account as numbers, each counted from the tensors; the totals are checked against each other.

    Returns:
        A dictionary for JSON: "entries" (the chain from the files to what is kept), "tensors", "bytes", "kept",
        "unused", "published_breakdown" (by name, with the embeddings counted once), "duplicates" and "replaced" (pair
        by pair).
    """
    entries = account.entries
    embeddings = [pair for pair in account.duplicates if pair.dropped.place.part == EMBEDDINGS]
    second_embeddings = {(pair.dropped.file, pair.dropped.name) for pair in embeddings}
    total = entries_of(entries)
    unique = entries_of(account.unique)
    kept = entries_of(account.kept)
    duplicate = entries_of(pair.dropped for pair in account.duplicates)
    replaced = entries_of(pair.dropped for pair in account.replaced)
    unused = entries_of(account.unused)
    if total - duplicate != unique or unique - replaced - unused != kept:
        raise AssertionError(
            f"the account does not add up: {total}, {duplicate}, {unique}, {replaced}, {unused}, {kept}"
        )
    once = [entry for entry in entries if (entry.file, entry.name) not in second_embeddings]
    return {
        "entries": {
            "in_files": total,
            "without_second_embeddings": entries_of(once),
            "unique": unique,
            "duplicate": duplicate,
            "replaced": replaced,
            "unused": unused,
            "kept": kept,
        },
        "tensors": {
            "in_files": len(entries),
            "distinct_storages": len({entry.storage for entry in entries if entry.size}),
            "kept": len(account.kept),
        },
        "bytes": {
            "in_files_one_by_one": bytes_of(entries),
            "unique": bytes_of(account.unique),
            "kept": bytes_of(account.kept),
        },
        "kept": component_table(account.kept),
        "unused": component_table(account.unused),
        "published_breakdown": component_table(once, "family"),
        "duplicates": [_pair_report(pair) for pair in account.duplicates],
        "replaced": [_pair_report(pair) for pair in account.replaced],
    }


def _pair_report(pair: Pair) -> dict[str, Any]:
    return {"dropped": pair.dropped.name, "kept": pair.kept.name, "entries": pair.dropped.size, "how": pair.how}
