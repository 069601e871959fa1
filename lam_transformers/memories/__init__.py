"""Memory that lasts: conversations and documents remembered and found again, offline, exactly, in one database.

`Memory` is what a user holds; docs/MEMORY.md is the guide. From top to bottom:

- `memory`: the facade, which names what can be done and leaves it to the modules below. `scoped`: the same for one
  scope, for servers and assistants.
- `transfer` (export and import) and `upkeep` (verify, rebuild, stats). `intact`: reading a damaged database.
- `adding`, `documents` (and `files`), `forgetting`: what changes a memory. `searching`, `lookup`: what asks it.
- `keys`: by which others may use a part of it.
- `conversations`: texts that grow, with the model's state. `strengths`: of memories that are recalled.
- `writing`: rows that are written, and the log.
- `engine`: what all of them share: the store, the model, the clock, and what this process keeps in memory.
- `reading`: how the model reads a text, a conversation that grows, a document. `paragraphs`: where those begin and end.
- `index`: one user's vectors and words, held in memory. `ranking` and `words`: how results are ordered.
- `sqlite` and `postgres` keep the contract of `store`, which also has the tables. `rows`: what is written in them.
- `records` and `errors`: what is taken, given and raised.

What was said is stored as it was said; all else (vectors, words, states) is made from it and can be made again
(`rebuild`). One transaction holds a turn's text, words, vectors, the conversation's state and the entry in the log,
which itself holds no text. Times are seconds since 1970 inside and datetimes (UTC) outside.
"""

from .errors import MemoryFileDamaged, MemoryFileRefused, MemoryUnavailable, UnknownMemory
from .keys import Key, Keys
from .memory import Memory
from .ranking import Ranking
from .records import ConversationRecord, MemoryRecord, Scope, SearchResult
from .scoped import ScopedMemory

__all__ = [
    "ConversationRecord",
    "Key",
    "Keys",
    "Memory",
    "MemoryFileDamaged",
    "MemoryFileRefused",
    "MemoryRecord",
    "MemoryUnavailable",
    "Ranking",
    "Scope",
    "ScopedMemory",
    "SearchResult",
    "UnknownMemory",
]
