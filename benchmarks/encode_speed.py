"""LAM against a softmax encoder, both through SentenceTransformer.encode: tokens/s and memory by length of text.

    python benchmarks/encode_speed.py LAM-base-v1 --data DIR

Both models are in one process, with the same threads and the same dtype, and take turns on the same texts; the ratio
of their tokens/s is taken pair by pair. (a) 5,000 sentences of STS-B (DIR/sts; left out without --data), (b) texts of
32 to 32,768 tokens, cut from a text at different places, (c) LAM alone beyond. The softmax model's table of positions
is repeated so that it can read texts longer than it was made for; its attention is torch's
scaled_dot_product_attention.

Peak memory is measured apart, each model and length in a fresh process: the largest resident set while `encode` reads
one text, sampled every few milliseconds, above that of the same process with the model loaded (and warmed up on a
short text) and the text in memory.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from measuring import in_fresh_process, natural_sentences

LENGTHS = (32, 128, 512, 2_048, 8_192, 32_768)
ALONE = (131_072, 1_000_000)
BASELINE = "all-MiniLM-L6-v2"


def load(name: str, dtype: str, longest: int):
    """A SentenceTransformer on the CPU that reads texts of `longest` tokens."""
    import torch
    from sentence_transformers import SentenceTransformer

    from lam_transformers.io.loading import locate_model

    kwargs = {"dtype": dtype, "attn_implementation": "sdpa"} if name == BASELINE else {"dtype": dtype}
    own_code = name != BASELINE  # that of the LAM folder, as a stranger runs it
    model = SentenceTransformer(locate_model(name), trust_remote_code=own_code, device="cpu", model_kwargs=kwargs)
    inner = model[0].auto_model if name == BASELINE else None
    if inner is not None and longest > inner.config.max_position_embeddings:
        parts = inner.embeddings
        table = parts.position_embeddings.weight.data
        table = table.repeat(longest // len(table) + 1, 1)[:longest]
        parts.position_embeddings = torch.nn.Embedding.from_pretrained(table)
        parts.position_ids = torch.arange(longest).unsqueeze(0)
        parts.token_type_ids = torch.zeros(1, longest, dtype=torch.long)
        inner.config.max_position_embeddings = longest
    if inner is not None:
        model.max_seq_length = model.tokenizer.model_max_length = longest
    return model


def cut(model, source: str, tokens: int, count: int) -> list[str]:
    """`count` texts of `tokens` tokens, special ones included, from different places of `source` said over and over."""
    offsets = model.tokenizer(source, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    places = [start for start, _ in offsets] + [len(source)]
    texts = []
    for i in range(count):
        first, inside = i * len(offsets) // count, tokens - 2
        rounds, rest = divmod(first + inside, len(offsets))
        end = rounds * len(source) + places[rest]
        texts.append((source * (rounds + 1))[places[first] : end].strip())
    return texts


def tokens_of(model, texts: list[str]) -> int:
    return sum(len(ids) for ids in model.tokenizer(texts, verbose=False)["input_ids"])


def spread(ratios: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(ratios), 3), "min": round(min(ratios), 3), "max": round(max(ratios), 3)}


def alternate(models: dict, texts: list[str], rounds: int, batch_size: int) -> dict:
    """Seconds and tokens/s of each model in turn, and the ratio pair by pair."""
    tokens = tokens_of(next(iter(models.values())), texts)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model.encode(texts[: len(texts) // 8] or "A text to warm up.", batch_size=batch_size)
    for _ in range(rounds):
        for name, model in models.items():
            began = time.perf_counter()
            model.encode(texts, batch_size=batch_size)
            seconds[name].append(time.perf_counter() - began)
    row = {"texts": len(texts), "tokens": tokens, "rounds": rounds}
    for name, values in seconds.items():
        row[f"{name}_tokens_per_second"] = round(tokens / statistics.median(values))
    if len(seconds) > 1:
        own, other = seconds.values()
        row["ratio"] = spread([b / a for a, b in zip(own, other, strict=True)])
    return row


def against_short(model, text: str, short: list[str], rounds: int) -> dict:
    """Tokens/s on one long text and its ratio to that on short ones, which are read before and after it."""

    def rate(texts: list[str], tokens: int) -> float:
        began = time.perf_counter()
        model.encode(texts, batch_size=32)
        return tokens / (time.perf_counter() - began)

    tokens, short_tokens = tokens_of(model, [text]), tokens_of(model, short)
    around, rates = [rate(short, short_tokens)], []
    for _ in range(rounds):
        rates.append(rate([text], tokens))
        around.append(rate(short, short_tokens))
    ratios = [x / statistics.mean(around[i : i + 2]) for i, x in enumerate(rates)]
    return {
        "texts": 1, "tokens": tokens, "rounds": rounds, "lam_tokens_per_second": round(statistics.median(rates)),
        "lam_tokens_per_second_at_2048_meanwhile": round(statistics.median(around)),
        "ratio_to_2048": spread(ratios),
    }  # fmt: skip


def measure_memory(name: str, dtype: str, source: str, tokens: int) -> dict:
    from lam_transformers.evaluation.parts.scaling import PeakMemory

    model = load(name, dtype, tokens)
    text = cut(model, source, tokens, 1)[0]
    model.encode("A short text to warm up. " * 10)
    with PeakMemory() as memory:
        model.encode(text)
    return {"peak_mb_above_loaded": round(memory.peak - memory.before, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--text", type=Path, default=Path("examples/data/handbook.md"))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=7, help="for short texts; fewer for long ones")
    parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS + ALONE, help="those above 32,768 LAM alone")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/encode_speed_DTYPE.json")
    parser.add_argument("--memory-of", nargs=2, metavar=("NAME", "TOKENS"), help="measure and print one point")
    arguments = parser.parse_args()
    source = arguments.text.read_text(encoding="utf-8")
    if arguments.memory_of:
        name, tokens = arguments.memory_of
        print(json.dumps(measure_memory(name, arguments.dtype, source, int(tokens))))
        return

    from lam_transformers.io.results import write_result

    own = load(arguments.model, arguments.dtype, 0)
    rows: dict[str, dict] = {}
    models = {"lam": own, "baseline": load(BASELINE, arguments.dtype, max(LENGTHS))}
    if arguments.data:
        rows["sentences"] = alternate(models, natural_sentences(arguments.data), arguments.rounds, 32)
        print("sentences", rows["sentences"], flush=True)
    for tokens in arguments.lengths:
        if tokens > LENGTHS[-1]:
            text, short = cut(own, source, tokens, 1)[0], cut(own, source, 2_048, 16)
            rows[str(tokens)] = against_short(own, text, short, 1 if tokens == 1_000_000 else 2)
        else:
            texts = cut(own, source, tokens, max(1, 16_384 // tokens))
            rounds = arguments.rounds if tokens < 8_192 else 3 if tokens < 32_768 else 2
            rows[str(tokens)] = alternate(models, texts, rounds, 32)
        print(tokens, rows[str(tokens)], flush=True)
    # long_encode.py measures the memory of longer texts.
    for tokens in () if arguments.no_memory else [n for n in arguments.lengths if n <= ALONE[0]]:
        for key, name in (("lam", arguments.model), ("baseline", BASELINE)):
            if tokens > LENGTHS[-1] and key == "baseline":
                continue
            options = ("--text", arguments.text, "--dtype", arguments.dtype, "--memory-of", name, tokens)
            found = in_fresh_process(__file__, arguments.model, *options)
            rows[str(tokens)][f"{key}_peak_mb_above_loaded"] = found["peak_mb_above_loaded"]
        print(tokens, rows[str(tokens)], flush=True)
    out = arguments.out or Path(f"benchmarks/results/encode_speed_{arguments.dtype}.json")
    header = {
        "dtype": arguments.dtype,
        "baseline": BASELINE,
        "batch_size": 32,
        "backend": own.transformers_model.backend,
    }
    write_result(out, {**header, "rows": rows})


if __name__ == "__main__":
    main()
