"""Files and folders that appear complete or not at all.

Both are written under a temporary name beside their place, `.NAME.PROCESS-RANDOM.tmp`, which no other writer has.
They are flushed to the disk and then renamed: a kill, a power cut or a full disk leaves what was there before, or the
new one. What a killed process has left, the next writer to the same place removes.
"""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def atomic_file(path: str | os.PathLike[str], temporary: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """Give the block an empty file to write, and put it in the place of `path` when the block ends well.

    Args:
        path: the file; its folder must exist.
        temporary: a name in the same folder for a caller that alone may write there (it holds a lock), and that looks
            for what a kill has left by that name; by default one that no other writer has.

    Yields:
        The temporary file, to be opened by its name.

    Raises:
        OSError: if it cannot be written; `path` is as it was before.
    """
    path = Path(path)
    if temporary is None:
        _remove_left(path)
        here = _temporary_name(path)
        here.open("xb").close()
    else:
        here = Path(temporary)
        here.open("wb").close()
    lock = _lock(here)
    try:
        yield here
        to_disk(here)
        os.replace(here, path)
        to_disk(path.parent)
    except SafetensorError as error:  # in which safetensors reports a full disk
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        here.unlink(missing_ok=True)
        _unlock(lock)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text in UTF-8 as a file that appears complete or not at all; see `atomic_file`.

    Args:
        path: the file; its folder must exist.
        text: all that it is to hold.

    Raises:
        OSError: if it cannot be written; `path` is as it was before.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(path: str | os.PathLike[str], replace: bool = False) -> Iterator[Path]:
    """Give the block a new folder to fill, and put it in the place of `path` when the block ends well.

    With `replace`, a folder that is there is kept as `path`.old until the new one has its place: a kill between the two
    renames leaves it under that name.

    Args:
        path: the folder; those above it are made where they are missing.
        replace: take the place of a folder that is there. Without it only an empty one may be there.

    Yields:
        The temporary folder.

    Raises:
        FileExistsError: if `path` is there, at the start or at the end, and is not to be replaced.
        OSError: if it cannot be written; `path` is as it was before.
    """
    path = Path(path)
    if not replace:
        _check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(path)
    here = _temporary_name(path)
    here.mkdir()
    lock = _lock(here)
    try:
        yield here
        for part in here.rglob("*"):
            if part.exists():  # not the link to something that is not there
                to_disk(part)
        to_disk(here)
        if replace:
            _take_place(here, path)
        else:
            _check_free(path)
            os.replace(here, path)
        to_disk(path.parent)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        shutil.rmtree(here, ignore_errors=True)
        _unlock(lock)


def to_disk(path: str | os.PathLike[str]) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    Args:
        path: the file or folder.

    Raises:
        OSError: if the disk refuses.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows does not open folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_free(path: Path) -> None:
    """Raise FileExistsError unless there is nothing at `path`, or an empty folder."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists; choose a new folder.")


def _take_place(folder: Path, path: Path) -> None:
    """Rename `folder` to `path`; a folder that is there makes way and is then removed."""
    old = path.with_name(path.name + ".old")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
    os.replace(folder, path)
    shutil.rmtree(old, ignore_errors=True)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(6)}.tmp")


def _remove_left(path: Path) -> None:
    """Remove what killed writers of `path` have left: their process is gone, and nobody holds a lock on it."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"(\d+)(-[0-9a-f]+)?\.tmp")
    for left in path.parent.iterdir():
        match = pattern.fullmatch(left.name)
        if match is None or left.is_symlink() or _runs(int(match[1])):
            continue
        lock = _lock(left)
        if lock is None:
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with suppress(OSError):
                left.unlink()
        _unlock(lock)


def _runs(process: int) -> bool:
    """Whether a process of this machine has that number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it belongs to somebody else
        return True
    return True


def _lock(path: Path) -> int | None:
    """A handle that holds a lock on a file or folder until it is closed or the process ends.

    None where there can be none: somebody else holds it, it cannot be opened, or the system has no such locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _unlock(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)
