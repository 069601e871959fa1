"""What the benchmarks share."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# glibc then gives every block of a megabyte back when it is freed. By default it learns to keep such blocks; how much
# that adds, up to 40 MB here, is different in every process. Giving back costs about a fifth of the speed.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "1000000"}


def in_fresh_process(script: str, *arguments: Any, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a script in a process of its own and return the JSON object that it prints last.

    Args:
        environment: variables besides those of this process.

    Raises RuntimeError with the end of what it printed to stderr if it fails.
    """
    done = subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True,
                          env=os.environ | (environment or {}))  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{script} {arguments} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


class Told(dict[str, Any]):
    """Numbers by name, for a file of results; each is printed when it comes, a line of JSON."""

    def tell(self, name: str, value: Any) -> None:
        """Take a number, or anything else that JSON has; floats to four digits after the point."""
        self[name] = round(value, 4) if isinstance(value, float) else value
        print(json.dumps({name: self[name]}), flush=True)


def natural_sentences(data: Path) -> list[str]:
    """The first 5,000 different sentences of the STS-B dev and test pairs in `data`/sts."""
    from lam_transformers.io.files import read_records

    files = [data / "sts" / f"stsb_{split}.jsonl.gz" for split in ("dev", "test")]
    both = [record[name] for file in files for record in read_records(file) for name in ("sentence1", "sentence2")]
    return list(dict.fromkeys(both))[:5000]
