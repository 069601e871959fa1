"""`python -m lam_transformers.cli` is `lam`."""

from .app import app

app()
