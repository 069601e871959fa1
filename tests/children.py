"""Functions run in processes of their own, which begin with the heavy libraries already imported.

Importing torch and transformers takes most of the time of a short process. A server imports them once in a session
and forks for every call. What must import everything anew, such as a stranger with a cache of its own, starts a process
in the ordinary way.
"""

import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = ["torch", "sentence_transformers", "lam_transformers.model.heads_lam", "lam_transformers.serving.app"]
CONTEXT.set_forkserver_preload(PRELOADED)  # what is not installed is left out


class Ended(NamedTuple):
    """How a process ended: its exit status, below zero for a signal, and what it printed to both streams."""

    status: int
    printed: str


def run_in_child(
    function: Callable[..., Any], *arguments: Any, environment: dict[str, str] | None = None, timeout: float = 300
) -> Ended:
    """Call a function of a module in a process of its own.

    Args:
        function: found by the name of its module; an exception of its makes the status 1.
        arguments: picklable.
        environment: variables besides those of the server, set before the module is imported.
        timeout: seconds, after which the process is killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        shown = Path(folder, "shown")
        process = CONTEXT.Process(
            target=_call, args=(function.__module__, function.__qualname__, arguments, shown, environment)
        )
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
        return Ended(process.exitcode, shown.read_text(errors="replace") if shown.exists() else "")


def _call(module: str, name: str, arguments: tuple[Any, ...], shown: Path, environment: dict[str, str] | None) -> None:
    os.environ.update(environment or {})
    file = os.open(shown, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    status = 1
    try:
        __import__(module)
        getattr(sys.modules[module], name)(*arguments)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
