"""Start and memory of LAM as ONNX: whole processes that have onnxruntime, tokenizers and numpy only.

    python benchmarks/edge_memory.py LAM-base-v1

Each is a fresh process. Start is the import and the load of a graph; the peak is that of the resident set of the whole
process (Linux), with eight short texts, or with one text of about 100,000 tokens.
"""

import argparse
import json
import tempfile
from pathlib import Path

from measuring import in_fresh_process

CHARACTERS = 430_000  # of a text of about 100,000 tokens

START = """
import json, re, sys, time
began = time.perf_counter()
folder, threads, graph, text = sys.argv[1:]
sys.path.insert(0, folder)
from lam_onnx import Encoder
encoder = Encoder(folder, threads=int(threads))
encoder.session(graph)
loaded = time.perf_counter() - began
text = open(text, encoding="utf-8").read()
if graph == "model_stream.onnx":
    encoder.encode_long(text)
else:
    encoder.encode([text[:500]] * 8)
seconds = time.perf_counter() - began - loaded
# Not getrusage: that starts with what the process was before it became this program.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) / 1024
print(json.dumps({
    "import_and_load_seconds": round(loaded, 2), "read_seconds": round(seconds, 1), "peak_mb": round(peak, 1),
}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="LAM-base-v1")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/edge_memory.json"))
    arguments = parser.parse_args()
    from lam_transformers.checkpoints.onnx import export_onnx
    from lam_transformers.io.results import write_result

    rows = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        script = folder / "start.py"
        script.write_text(START, encoding="utf-8")
        words = Path("examples/data/handbook.md").read_text(encoding="utf-8")
        text = folder / "text.txt"
        text.write_text((words * (CHARACTERS // len(words) + 1))[:CHARACTERS], encoding="utf-8")
        for precision in ("float32", "int8"):
            export_onnx(arguments.model, folder / precision, precision)
            for graph, what in (("model.onnx", "short texts"), ("model_stream.onnx", "one long text")):
                rows[f"{precision}, {what}"] = in_fresh_process(
                    str(script), folder / precision, arguments.threads, graph, text
                )
                print(precision, what, json.dumps(rows[f"{precision}, {what}"]), flush=True)
    write_result(arguments.out, rows, threads=arguments.threads)


if __name__ == "__main__":
    main()
