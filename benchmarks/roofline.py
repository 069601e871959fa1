"""How close LAM comes to the speed of its matrix products alone.

    python benchmarks/roofline.py LAM-base-v1

The roofline is what torch's own matrix product would allow: the products of all linear layers, on random rows, as many
at a time as `encode` packs into one batch, and nothing else. It and `encode` take turns in one process; the fraction is
the roofline's time a token over encode's, pair by pair. Encode also tokenises, reads embeddings, normalises, activates,
runs the memories and pools.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from encode_speed import cut, load

LENGTHS = (32, 128, 512, 2_048, 8_192, 32_768, 131_072, 1_000_000)


@torch.inference_mode()
def multiply(weights: list[torch.Tensor], inputs: dict[int, torch.Tensor], calls: int) -> None:
    """The products of all layers, `calls` times; inputs by width."""
    for _ in range(calls):
        for weight in weights:
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, default=Path("examples/data/handbook.md"))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--longest", type=int, default=LENGTHS[-1])
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/roofline_DTYPE.json")
    arguments = parser.parse_args()
    source = arguments.text.read_text(encoding="utf-8")
    model = load(arguments.model, arguments.dtype, 0)
    layers = model.transformers_model.layers.named_modules()
    weights = [m.weight for name, m in layers if isinstance(m, torch.nn.Linear) and "flux" not in name]
    rows = {}
    for tokens in (n for n in LENGTHS if n <= arguments.longest):
        texts = cut(model, source, tokens, max(1, 16_384 // tokens))
        count = sum(len(ids) for ids in model.tokenizer(texts, verbose=False)["input_ids"])
        # As many rows as encode multiplies at once: a full token budget of short texts, a segment of a long one.
        together = min(len(texts), max(1, model[0].budget // tokens)) * min(tokens, model[0].segment)
        inputs = {n: torch.randn(together, n, dtype=weights[0].dtype) for n in {w.shape[1] for w in weights}}

        calls = max(1, min(count, 32_768) // together)
        multiply(weights, inputs, calls)
        model.encode(texts[: max(1, len(texts) // 8)] if tokens < 100_000 else "Warm up.")
        pairs = []
        for _ in range(arguments.rounds if tokens < 100_000 else 1):
            began = time.perf_counter()
            multiply(weights, inputs, calls)
            bound = (time.perf_counter() - began) / (calls * together)
            began = time.perf_counter()
            model.encode(texts)
            pairs.append((bound, (time.perf_counter() - began) / count))
        fractions = [bound / reached for bound, reached in pairs]
        rows[str(tokens)] = {
            "rows_together": together,
            "products_tokens_per_second": round(1 / statistics.median(p[0] for p in pairs)),
            "encode_tokens_per_second": round(1 / statistics.median(p[1] for p in pairs)),
            "fraction": {"median": round(statistics.median(fractions), 3), "all": [round(f, 3) for f in fractions]},
        }
        print(tokens, rows[str(tokens)], flush=True)
    from lam_transformers.io.results import write_result

    out = arguments.out or Path(f"benchmarks/results/roofline_{arguments.dtype}.json")
    write_result(out, {"dtype": arguments.dtype, "backend": model.transformers_model.backend, "rows": rows})


if __name__ == "__main__":
    main()
