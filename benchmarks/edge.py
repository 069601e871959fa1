"""LAM against all-MiniLM-L6-v2, both as ONNX on the same onnxruntime: tokens/s and size.

    python benchmarks/edge.py LAM-base-v1 --data DIR

Both models are in one process, with the same threads, and take turns on the same token ids; the ratio of their
tokens/s is taken round by round. all-MiniLM-L6-v2 is built of onnxruntime's fused operators (edge_teacher.py), in int8
twice: by onnxruntime's own dynamic quantisation, a scale for each batch, and with LAM's products, a scale for each
token. Sentences are those of STS-B in batches of 1,024 tokens, shortest first. LAM in torch reads the same ids.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import natural_sentences

SIZES = (16, 32, 128, 512, 2_048, 8_192)
BUDGET = 1_024  # tokens of a batch; a longer text is one
BASELINE = "all-MiniLM-L6-v2"


def prepare(model: str, folder: Path) -> dict[str, Path]:
    """Export both models in all precisions: name -> ONNX file."""
    from edge_teacher import export_teacher
    from onnxruntime.quantization import quantize_dynamic

    from lam_transformers.checkpoints.onnx import export_onnx
    from lam_transformers.io.loading import locate_model

    paths = {}
    for precision in ("float32", "int8"):
        export_onnx(model, folder / f"lam_{precision}", precision)
        paths[f"lam_{precision}"] = folder / f"lam_{precision}/model.onnx"
        paths[f"minilm_{precision}"] = folder / f"minilm_{precision}.onnx"
        export_teacher(locate_model(BASELINE), paths[f"minilm_{precision}"], precision)
    paths["minilm_int8_dynamic"] = folder / "minilm_int8_dynamic.onnx"
    options = {"DefaultTensorType": 1}  # float32: the type of what onnxruntime's own operators give
    quantize_dynamic(paths["minilm_float32"], paths["minilm_int8_dynamic"], per_channel=True, extra_options=options)
    return paths


def session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def batches_of(lengths: list[int], seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Random ids of these lengths, shortest first, in padded batches of at most BUDGET tokens."""
    rng = np.random.default_rng(seed)
    groups: list[list[int]] = [[]]
    for length in sorted(lengths):
        if groups[-1] and (len(groups[-1]) + 1) * length > BUDGET:
            groups.append([])
        groups[-1].append(length)
    batches = []
    for group in groups:
        ids = rng.integers(1_000, 30_000, (len(group), max(group)))
        mask = (np.arange(max(group)) < np.array(group)[:, None]).astype(np.int64)
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


def torch_reader(model: str) -> Any:
    """LAM in torch on the same batches."""
    import torch

    from lam_transformers import LAMModel

    lam = LAMModel.from_pretrained(model).eval()

    def read(batch: dict[str, np.ndarray]) -> None:
        with torch.inference_mode():
            lam(**{name: torch.from_numpy(x) for name, x in batch.items()})

    return read


def in_turns(readers: dict[str, Any], batches: list[dict[str, np.ndarray]], seconds: float) -> dict[str, Any]:
    """Median tokens/s of each reader, and the ratios round by round, after a round that is not counted."""
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    times: dict[str, list[float]] = {name: [] for name in readers}
    began = time.perf_counter()
    rounds = 0
    while rounds < 2 or time.perf_counter() - began < seconds:
        for name, read in readers.items():
            start = time.perf_counter()
            for batch in batches:
                read(batch)
            times[name].append(time.perf_counter() - start)
        rounds += 1
    times = {name: values[1:] for name, values in times.items()}

    def ratio(own: str, other: str) -> float:
        return round(statistics.median(b / a for a, b in zip(times[own], times[other], strict=True)), 2)

    return {
        "tokens": tokens,
        "rounds": rounds - 1,
        "tokens_per_second": {name: round(tokens / statistics.median(values)) for name, values in times.items()},
        "lam_to_minilm_float32": ratio("lam_float32", "minilm_float32"),
        "lam_to_minilm_int8": ratio("lam_int8", "minilm_int8"),
        "lam_to_minilm_int8_dynamic": ratio("lam_int8", "minilm_int8_dynamic"),
        "lam_int8_to_float32": ratio("lam_int8", "lam_float32"),
        "lam_onnx_to_torch_float32": ratio("lam_float32", "lam_torch"),
    }


def rule_readers(threads: int, heads: int = 12, width: int = 32) -> dict[str, Any]:
    """The memory rule alone, read one way: as LAM's graph has it, and by onnxruntime's operator for it."""
    import onnxruntime

    from lam_transformers.checkpoints.onnx_graph import Graph
    from lam_transformers.checkpoints.onnx_lam import Chunks, Tokens, in_chunks, memory_rule

    size = heads * width
    readers = {}
    for kind in ("in chunks", "LinearAttention"):
        graph = Graph()
        q, k, v = (graph.input(name, np.float32, ["batch", "tokens", size]) for name in "qkv")
        beta = graph.input("beta", np.float32, ["batch", "tokens", heads])
        log_decay = graph.input("log_decay", np.float32, ["batch", "tokens", 2 * heads])  # the fast ones, the slow ones
        if kind == "in chunks":
            chunks = Chunks.of(graph, q.size(1), None)
            rows = (x.reshape(0, -1, chunks.size, heads, width).transpose(1, 0, 3, 2, 4).add_axis(1) for x in (q, k, v))
            (strength,) = in_chunks(beta, chunks, 1, heads)
            decays = graph.concat(in_chunks(log_decay, chunks, 2, heads), 1)
            weights = graph.op("Expand", 0.5, graph.op("Shape", decays))
            tokens = Tokens(*rows, strength, decays, weights, weights)
            memory = graph.op("Expand", 0.0, graph.sizes(2, q.size(0), heads, width, width))
            o = memory_rule(graph, chunks, None, tokens, memory)[0]
            o = o.transpose(1, 0, 3, 2, 4).reshape(q.size(0), -1, size)
        else:
            parts = [
                graph.op(
                    "microsoft:LinearAttention", q, k, v * 0.5, None, decay, beta, outputs=2, q_num_heads=heads,
                    kv_num_heads=heads, update_rule="gated_delta", scale=1.0,
                )
                for decay in log_decay.split([heads, heads])
            ]  # fmt: skip
            o = parts[0] * 0.5 + parts[1] * 0.5
        graph.output("o", o, np.float32, ["batch", "tokens", size])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(graph.model("rule", {}).SerializeToString(), options)
        readers[kind] = lambda given, session=session: session.run(None, given)
    return readers


def rule_row(threads: int) -> dict[str, Any]:
    """Milliseconds for 8 texts of 128 tokens, and the largest difference of the two."""
    rng = np.random.default_rng(0)
    given = {name: rng.standard_normal((8, 128, 384)).astype(np.float32) for name in "qkv"}
    for name in "qk":
        heads = given[name].reshape(8, 128, 12, 32)
        given[name] = (heads / np.linalg.norm(heads, axis=-1, keepdims=True)).reshape(8, 128, 384)
    given["beta"] = rng.random((8, 128, 12), np.float32)
    given["log_decay"] = -rng.random((8, 128, 24), np.float32)
    try:
        readers = rule_readers(threads)
    except Exception as error:  # an onnxruntime without the operator
        return {"not measured": str(error)[:200]}
    times: dict[str, list[float]] = {name: [] for name in readers}
    results = {}
    for _ in range(9):
        for name, read in readers.items():
            start = time.perf_counter()
            results[name] = read(given)[0]
            times[name].append(time.perf_counter() - start)
    difference = np.abs(results["in chunks"] - results["LinearAttention"]).max()
    row: dict[str, Any] = {f"{name}, ms": round(1e3 * statistics.median(values), 1) for name, values in times.items()}
    return row | {"largest_difference": float(f"{difference:.1e}")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="LAM-base-v1")
    parser.add_argument("--data", type=Path, help="a folder with sts/, for the sentences")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10, help="for each size of text")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/edge.json"))
    arguments = parser.parse_args()
    import onnxruntime
    import torch

    from lam_transformers.io.results import write_result

    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = prepare(arguments.model, folder)
        readers: dict[str, Any] = {}
        for name, path in paths.items():
            graph = session(path, arguments.threads)
            readers[name] = lambda batch, graph=graph: graph.run(["sentence_embedding"], batch)
        readers["lam_torch"] = torch_reader(arguments.model)
        rows = {}
        for size in arguments.sizes:
            rows[f"{size} tokens"] = in_turns(readers, batches_of([size] * max(BUDGET // size, 1)), arguments.seconds)
            print(size, json.dumps(rows[f"{size} tokens"]), flush=True)
        if arguments.data:
            rows["sentences"] = in_turns(readers, sentence_batches(paths, arguments.data), arguments.seconds)
            print("sentences", json.dumps(rows["sentences"]), flush=True)
        rows["memory rule, 1,024 tokens"] = rule_row(arguments.threads)
        print(rows["memory rule, 1,024 tokens"])
        rows["mb_on_disk"] = {name: round(path.stat().st_size / 1e6, 1) for name, path in paths.items()}
        print(json.dumps(rows["mb_on_disk"]))
        flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        write_result(
            arguments.out,
            rows,
            threads=arguments.threads,
            onnxruntime=onnxruntime.__version__,
            vnni="avx_vnni" in flags or "avx512_vnni" in flags,
        )


def sentence_batches(paths: dict[str, Path], data: Path) -> list[dict[str, np.ndarray]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(paths["lam_float32"].with_name("tokenizer.json")))
    sentences = natural_sentences(data)[:1000]
    return batches_of([len(encoding.ids) for encoding in tokenizer.encode_batch(sentences)])


if __name__ == "__main__":
    main()
