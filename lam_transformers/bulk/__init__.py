"""Large corpora into embeddings on the disk: `lam encode`."""

from .options import EncodeOptions
from .run import Counts, Summary, encode_files

__all__ = ["Counts", "EncodeOptions", "Summary", "encode_files"]
