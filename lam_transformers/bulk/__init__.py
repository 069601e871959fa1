"""Large corpora into embeddings on the disk: `lam encode`."""

from .options import EncodeOptions
from .run import Progress, Summary, encode_files

__all__ = ["EncodeOptions", "Progress", "Summary", "encode_files"]
