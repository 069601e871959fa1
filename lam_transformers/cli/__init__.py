"""The command `lam`."""

from .app import app

__all__ = ["app"]
