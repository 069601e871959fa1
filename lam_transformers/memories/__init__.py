"""Memory that lasts: conversations and documents remembered and found again, offline, exactly, in one database.

`Memory` is what a user holds; docs/MEMORY.md is the guide. From top to bottom:

- `memory`, with `searching`, `documents`, `transfer`, `upkeep` and `strengths`: what can be done.
- `ranking` and `words`: how results are ordered. `index`: one user's vectors and words, held in memory.
- `reading`: how the model reads a text, a conversation that grows, a document. `paragraphs`: where those begin and end.
- `store`: the contract of a store and its tables; `sqlite` and `postgres` keep it.
- `records` and `errors`: what is taken, given and raised.

What was said is stored as it was said; all else (vectors, words, states) is made from it and can be made again
(`rebuild`). One transaction holds a turn's text, words, vectors, the conversation's state and the entry in the log,
which itself holds no text. Times are seconds since 1970 inside and datetimes (UTC) outside.
"""

from .errors import MemoryFileDamaged, MemoryFileRefused, MemoryUnavailable, UnknownMemory
from .memory import Memory
from .ranking import Ranking
from .records import MemoryRecord, SearchResult

__all__ = [
    "Memory",
    "MemoryFileDamaged",
    "MemoryFileRefused",
    "MemoryRecord",
    "MemoryUnavailable",
    "Ranking",
    "SearchResult",
    "UnknownMemory",
]
