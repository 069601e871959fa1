"""More ways to embed than `SentenceTransformer.encode`: late chunks, an appendable embedding, a small wrapper."""

from .chunks import Chunk, late_chunks
from .encoder import LAMEncoder
from .session import LAMSession

__all__ = ["Chunk", "LAMEncoder", "LAMSession", "late_chunks"]
