"""What int8 costs: LAM as ONNX in each precision on STS-B (Spearman), Cranfield and CISI (nDCG@10).

python benchmarks/edge_quality.py LAM-base-v1 --data DIR
"""

import argparse
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

from lam_transformers.checkpoints.onnx import export_onnx
from lam_transformers.io.results import write_result
from lam_transformers.scoring.retrieval import evaluate_retrieval
from lam_transformers.scoring.sts import evaluate_sts


def load(folder: Path, threads: int) -> Any:
    """The encoder in an exported folder, by the folder's own lam_onnx.py."""
    spec = importlib.util.spec_from_file_location("lam_onnx", folder / "lam_onnx.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Encoder(folder, threads=threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="LAM-base-v1")
    parser.add_argument("--data", type=Path, required=True, help="a folder with sts/ and retrieval/")
    parser.add_argument("--precisions", nargs="*", default=["float32", "int8"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/edge_quality.json"))
    arguments = parser.parse_args()
    scores: dict[str, dict[str, float]] = {}
    for precision in arguments.precisions:
        with tempfile.TemporaryDirectory() as folder:
            export_onnx(arguments.model, folder, precision)
            encode = load(Path(folder), arguments.threads).encode
            row = scores[precision] = {}
            for split in ("dev", "test"):
                measured = evaluate_sts(encode, arguments.data / "sts" / f"stsb_{split}.jsonl.gz")
                row[f"stsb_{split}"] = round(measured["spearman"], 5)
            for name in ("cranfield", "cisi"):
                row[name] = round(evaluate_retrieval(encode, arguments.data / "retrieval" / name)["ndcg@10"], 5)
                print(precision, row, flush=True)
    write_result(arguments.out, scores)


if __name__ == "__main__":
    main()
