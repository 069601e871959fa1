"""A model folder to the Hub: `lam push`."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from ..io.atomic import write_text
from .inspect import inspect

HEADING = "## Load a pinned revision"
PINNED = """{heading}

Remote code is code: pin what you have read. This revision holds the weights and the code that the rest of this card
describes.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(
    "{repository}",
    trust_remote_code=True,
    revision="{revision}",
    model_kwargs={{"code_revision": "{revision}"}},
    config_kwargs={{"code_revision": "{revision}"}},
)
```

```python
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repository}", revision="{revision}")
model = AutoModel.from_pretrained(
    "{repository}",
    trust_remote_code=True,
    revision="{revision}",
    code_revision="{revision}",
)
```
"""
# Everything else in a folder stays where it is: pickles, logs and checkpoints have no business in a model repository.
UPLOADED = (".safetensors", ".json", ".py", ".md", ".txt")


def pinned_card(card: str, repository: str, revision: str) -> str:
    """A model card with a section on loading `repository` at `revision`; an older such section is replaced."""
    section = PINNED.format(heading=HEADING, repository=repository, revision=revision)
    old = re.compile(re.escape(HEADING) + r"\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
    if old.search(card):
        return old.sub(lambda _: section + "\n", card, count=1).rstrip() + "\n"
    return card.rstrip() + "\n\n" + section


def files_to_push(folder: Path) -> list[Path]:
    """The files of a model folder that belong on the Hub, relative to it, sorted."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix in UPLOADED]
    inside = [path.relative_to(folder) for path in files]
    hidden = ("__pycache__", ".")
    return sorted(path for path in inside if not any(part.startswith(hidden) for part in path.parts))


def push(folder: str | Path, repository: str, *, dry_run: bool = True, private: bool = False) -> Iterator[str]:
    """Upload a model folder and pin its revision in the model card, or say what would be done.

    The weights and the code go first; the card, which names that commit, follows in a second one.

    Args:
        folder: written by `lam convert` or `lam export`.
        repository: "org/name"; made if it is not there.
        dry_run: touch neither the network nor the folder.
        private: of a repository that has to be made.

    Yields:
        lines that say what is done.

    Raises:
        ValueError: if the name is not org/name, or the folder does not hold a model that loads.
        OSError: if a file is missing, or the Hub refuses.
    """
    folder = Path(folder)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"The repository must be org/name, got '{repository}'.")
    if not (folder / "config.json").is_file() or not (folder / "README.md").is_file():
        raise FileNotFoundError(f"{folder} needs a config.json and a README.md; lam convert and lam export write them.")
    inspection = inspect(folder)
    if not inspection["loads"] or "auto_map" not in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        raise ValueError(
            f"{folder} is not a model folder that loads: {inspection.get('reason', 'no auto_map in config.json')}"
        )
    card = (folder / "README.md").read_text(encoding="utf-8")
    files = files_to_push(folder)
    for path in files:
        yield f"{(folder / path).stat().st_size:>12,}  {path}"
    if dry_run:
        yield f"Would upload these {len(files)} files to {repository} and then this card (add --upload to do it):"
        yield pinned_card(card, repository, "REVISION")
        return
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repository,
        folder_path=folder,
        allow_patterns=[str(path) for path in files],
        commit_message="Weights and code",
    )
    text = pinned_card(card, repository, commit.oid)
    api.upload_file(
        repo_id=repository,
        path_in_repo="README.md",
        path_or_fileobj=text.encode(),
        commit_message=f"Model card that pins {commit.oid}",
    )
    write_text(folder / "README.md", text)
    yield f"Uploaded to {repository} at revision {commit.oid}."
