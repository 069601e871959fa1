"""What the benchmarks share."""

import json
import subprocess
import sys
from typing import Any


def in_fresh_process(script: str, *arguments: Any) -> dict[str, Any]:
    """Run a script in a process of its own and return the JSON object that it prints last.

    Raises RuntimeError with the end of what it printed to stderr if it fails.
    """
    done = subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{script} {arguments} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
