"""One long text end to end through SentenceTransformer.encode: time, memory, and whether it equals one plain pass.

    python benchmarks/long_encode.py LAM-base-v1

Each length runs in a fresh process. Peak memory is the largest resident set while `encode` runs, sampled every few
milliseconds, above that of the same process with the model loaded (and warmed up on a short text) and the text in
memory. It is measured twice, as the process comes and with a glibc that gives freed blocks back (GIVE_BACK in
measuring.py). With `--check`, the text is also tokenised at once and read by LAMModel in one call, and the two
embeddings are compared (this needs the memory that encode saves).
"""

import argparse
import json
import time
from pathlib import Path

from measuring import GIVE_BACK, in_fresh_process

LENGTHS = (10_000, 100_000, 1_000_000)


def measure(model_name: str, source: Path, tokens: int, check: bool) -> dict:
    import numpy as np
    import torch
    from sentence_transformers import SentenceTransformer

    from lam_transformers.evaluation.parts.scaling import PeakMemory

    model = SentenceTransformer(model_name, trust_remote_code=True)
    once = source.read_text(encoding="utf-8")
    count = len(model.tokenizer(once, add_special_tokens=False)["input_ids"])
    text = (once * (tokens // count + 1))[: len(once) * tokens // count]
    model.encode("A short text to warm up. " * 10)
    with PeakMemory() as memory:
        began = time.perf_counter()
        embedding = model.encode(text)
        seconds = time.perf_counter() - began
    row = {
        "tokens": tokens,
        "characters": len(text),
        "seconds": round(seconds, 2),
        "tokens_per_second": round(tokens / seconds),
        "peak_mb_above_loaded": round(memory.peak - memory.before, 1),
        "loaded_mb": round(memory.before, 1),
        "finite": bool(np.isfinite(embedding).all()),
    }
    if check:
        batch = model.tokenizer(text, return_tensors="pt")
        with torch.inference_mode():
            mean = model.transformers_model(batch["input_ids"]).last_hidden_state[0].mean(0, dtype=torch.float64)
        difference = torch.nn.functional.normalize(mean, dim=0).numpy() - embedding
        row |= {"tokens": batch["input_ids"].shape[1], "difference_to_one_pass": float(abs(difference).max())}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, default=Path("examples/data/handbook.md"), help="repeated to the length")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/long_encode.json"))
    parser.add_argument("--tokens", type=int, help="measure one length in this process and print it")
    arguments = parser.parse_args()
    if arguments.tokens:
        print(json.dumps(measure(arguments.model, arguments.text, arguments.tokens, arguments.check)))
        return
    rows = []
    for tokens in LENGTHS:
        options = ["--text", arguments.text, "--tokens", tokens]
        row = in_fresh_process(__file__, arguments.model, *options, *["--check"] * arguments.check)
        again = in_fresh_process(__file__, arguments.model, *options, environment=GIVE_BACK)
        rows.append(row | {f"{name}_giving_back": again[name] for name in ("seconds", "peak_mb_above_loaded")})
        print(rows[-1], flush=True)
    from lam_transformers.io.results import write_result

    write_result(arguments.out, {"giving_back": GIVE_BACK, "runs": rows})


if __name__ == "__main__":
    main()
