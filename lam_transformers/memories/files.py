"""Documents read from files: plain text, Markdown, and PDF through pypdf."""

import os
from pathlib import Path


def load_text(source: str | os.PathLike[str]) -> tuple[str, str | None]:
    """The text of a document and its name: a string is the text itself, a path names a file.

    Raises:
        OSError: for a file that cannot be read.
        ValueError: for a file that is no text.
        ImportError: for a PDF without pypdf.
    """
    if isinstance(source, str):
        return source, None
    path = Path(source)
    if path.suffix.lower() == ".pdf":
        return _pdf_text(path), path.name
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is a folder, a pipe or a device; give a file.")
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig"), path.name
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}); convert it first.") from error


def _pdf_text(path: Path) -> str:
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError as error:
        raise ImportError('A PDF needs pypdf: pip install "lam-transformers[memory]".') from error
    try:
        text = "\n\n".join(page.extract_text() or "" for page in PdfReader(path).pages)
    except (PyPdfError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as a PDF ({error}).") from error
    text = text.replace("\0", " ").encode("utf-8", "replace").decode()
    if not text.strip():
        raise ValueError(f"{path} holds no text, only pictures perhaps; run it through text recognition first.")
    return text
