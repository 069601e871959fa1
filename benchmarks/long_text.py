"""Time and memory of one long text, fed to LAMModel in segments with carried state and a running mean.

    python benchmarks/long_text.py LAM-base-v1 --text FILE

Each length runs in a fresh process. While the long text is read, a short one of 4,096 tokens is read about every 50,000
tokens, so that a machine whose speed drifts is the same machine for both; the ratio is the time per token of the long
text over that of the short ones. Peak memory is the largest resident set, sampled every few milliseconds, above that
of the same process with the model loaded, the text and its ids in memory; glibc gives freed blocks back (GIVE_BACK in
measuring.py), so that what is measured is what the model needs.
"""

import argparse
import json
import time
from pathlib import Path

from measuring import GIVE_BACK, in_fresh_process

SHORT = 4_096
LENGTHS = (4_096, 100_000, 1_000_000)
BETWEEN = 50_000


def measure(model_name: str, text: Path, tokens: int, segment: int) -> dict:
    import torch
    from transformers import AutoModel, AutoTokenizer

    import lam_transformers  # noqa: F401
    from lam_transformers.evaluation.parts.scaling import PeakMemory

    model = AutoModel.from_pretrained(model_name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    once = tokenizer(text.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    ids = torch.tensor(once, dtype=torch.int32).repeat(tokens // len(once) + 1)[:tokens].unsqueeze(0)
    del once, tokenizer
    width = model.config.hidden_size

    @torch.inference_mode()
    def read(first: int, last: int, state, total) -> float:
        """Read ids[first:last] on from a state, adding to the running sum; returns the seconds."""
        began = time.perf_counter()
        for i in range(first, last, segment):
            output = model(input_ids=ids[:, i : min(i + segment, last)].long(), cache=state)
            total += output.last_hidden_state[0].sum(0, dtype=torch.float64)
        return time.perf_counter() - began

    def read_short() -> float:
        return read(0, SHORT, model.new_state(1), torch.zeros(width, dtype=torch.float64))

    with PeakMemory() as memory:
        read_short()
        state, total = model.new_state(1), torch.zeros(width, dtype=torch.float64)
        seconds, short = 0.0, []
        for first in range(0, tokens, BETWEEN):
            short += [read_short(), read_short()]
            seconds += read(first, min(first + BETWEEN, tokens), state, total)
    short_rate = len(short) * SHORT / sum(short)
    return {
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(tokens / seconds),
        "tokens_per_second_of_4096_meanwhile": round(short_rate),
        "time_per_token_over_that_of_4096": round(seconds / tokens * short_rate, 3),
        "peak_mb_above_loaded": round(memory.peak - memory.before, 1),
        "loaded_mb": round(memory.before, 1),
        "finite": bool(total.isfinite().all()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, default=Path("examples/data/handbook.md"), help="repeated to the length")
    parser.add_argument("--segment", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/long_text.json"))
    parser.add_argument("--tokens", type=int, help="measure one length in this process and print it")
    arguments = parser.parse_args()
    if arguments.tokens:
        print(json.dumps(measure(arguments.model, arguments.text, arguments.tokens, arguments.segment)))
        return
    rows = []
    for tokens in LENGTHS:
        options = ("--text", arguments.text, "--segment", arguments.segment, "--tokens", tokens)
        rows.append(in_fresh_process(__file__, arguments.model, *options, environment=GIVE_BACK))
        print(rows[-1], flush=True)
    from lam_transformers.io.results import write_result

    write_result(arguments.out, {"segment": arguments.segment, "environment_variables": GIVE_BACK, "runs": rows})


if __name__ == "__main__":
    main()
