"""Time and memory of one long text, fed to LAMModel in segments with carried state and a running mean.

    python benchmarks/long_text.py LAM-base-v1 --text FILE

Each length runs in a fresh process. Peak memory is the largest resident set, sampled every few milliseconds while the
text is read, above that of the same process with the model loaded (and warmed up on one segment), the text and its ids
in memory.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

LENGTHS = (4_096, 100_000, 1_000_000)


def resident() -> float:
    """Resident set of this process, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


class Peak:
    """Samples the resident set in a thread."""

    def __enter__(self):
        self.value, self._running = resident(), True
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self):
        while self._running:
            self.value = max(self.value, resident())
            time.sleep(0.005)

    def __exit__(self, *error):
        self._running = False
        self._thread.join()


def measure(model_name: str, text: Path, tokens: int, segment: int) -> dict:
    import torch
    from transformers import AutoModel, AutoTokenizer

    import lam_transformers  # noqa: F401

    model = AutoModel.from_pretrained(model_name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    once = tokenizer(text.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    ids = torch.tensor(once, dtype=torch.int32).repeat(tokens // len(once) + 1)[:tokens].unsqueeze(0)
    del once, tokenizer

    @torch.inference_mode()
    def read(ids):
        state, total = model.new_state(1), torch.zeros(model.config.hidden_size, dtype=torch.float64)
        for i in range(0, ids.shape[1], segment):
            output = model(input_ids=ids[:, i : i + segment].long(), cache_params=state)
            total += output.last_hidden_state[0].sum(0, dtype=torch.float64)
        return total / ids.shape[1]

    loaded = resident()
    with Peak() as first:
        read(ids[:, :segment])
    repeats = max(1, 100_000 // tokens)
    with Peak() as peak:
        began = time.perf_counter()
        for _ in range(repeats):
            mean = read(ids)
        seconds = (time.perf_counter() - began) / repeats
    return {
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(tokens / seconds),
        "peak_mb_above_loaded": round(max(peak.value, first.value) - loaded, 1),
        "loaded_mb": round(loaded, 1),
        "finite": bool(mean.isfinite().all()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, default=Path("examples/data/handbook.md"), help="repeated to the length")
    parser.add_argument("--segment", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3, help="rounds over the lengths, the longest in one")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/long_text.json"))
    parser.add_argument("--tokens", type=int, help="measure one length in this process and print it")
    arguments = parser.parse_args()
    if arguments.tokens:
        print(json.dumps(measure(arguments.model, arguments.text, arguments.tokens, arguments.segment)))
        return
    rows = []
    for round_number in range(arguments.repeats):
        for tokens in LENGTHS if round_number == arguments.repeats // 2 else LENGTHS[:-1]:
            command = [sys.executable, __file__, arguments.model, "--text", str(arguments.text)]
            command += ["--segment", str(arguments.segment), "--tokens", str(tokens)]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            rows.append({"round": round_number, **json.loads(output.splitlines()[-1])})
            print(rows[-1], flush=True)
    from lam_transformers.evaluation.record import write_result

    write_result(arguments.out, {"segment": arguments.segment, "runs": rows})


if __name__ == "__main__":
    main()
