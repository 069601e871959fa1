"""`lam init`, `lam train distill`, `lam export`, end to end on tiny models."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoTokenizer

from lam_transformers import LAMModel
from lam_transformers.checkpoints.export import SHIPPED_CODE
from lam_transformers.model.checks_lam import weights_checksum

from ..helpers import run_lam

WORDS = "the man woman dog cat plays runs sleeps eats music guitar book river red green".split()  # noqa: SIM905


@pytest.fixture
def data(tmp_path):
    """A text file and a pair file of made-up sentences."""
    sentences = [f"the {a} {b} the {c}" for a in WORDS for b in WORDS for c in WORDS[:3]]
    text, dev = tmp_path / "text.jsonl", tmp_path / "dev.jsonl"
    text.write_text("".join(json.dumps({"text": s}) + "\n" for s in sentences))
    pairs = zip(sentences[::7], sentences[3::7], strict=False)
    records = [{"sentence1": a, "sentence2": b, "score": i % 6} for i, (a, b) in enumerate(pairs)]
    dev.write_text("".join(json.dumps(r) + "\n" for r in records[:40]))
    return text, dev


def test_init_distill_resume_export(tiny_bert, data, tmp_path):
    text, dev = data
    start, out, release = tmp_path / "start", tmp_path / "run", tmp_path / "release"
    run_lam("init", tiny_bert, start, "--gate", "8")
    assert LAMModel.from_pretrained(start).config.output_gate_rank == 8
    options = ("--dev", dev, "--text", text, "--teacher", tiny_bert, "--exclude", dev)
    options += ("--tokens-per-batch", 64, "--evaluate-every", 4, "--checkpoint-every", 2, "--decay-steps", 2)
    run_lam("train", "distill", start, out, *options, "--steps", 4)
    message = run_lam("train", "distill", start, out, *options, "--steps", 6)
    assert "Best STS-B dev Pearson" in message
    kept = json.loads((out / "data.json").read_text())["texts"]
    assert kept["text.jsonl: in evaluation"] > 0
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert max(steps) == 6
    card = tmp_path / "card.md"
    card.write_text("# a card\n")
    run_lam("export", out / "best", release, "--card", card)
    assert (release / "README.md").read_text() == "# a card\n"
    assert all((release / name).exists() for name in SHIPPED_CODE)
    exported = LAMModel.from_pretrained(release)
    assert exported.dtype == torch.float32
    best = LAMModel.from_pretrained(out / "best").state_dict()
    for name, x in exported.state_dict().items():
        assert torch.equal(x, best[name].half().float()), name
    assert AutoTokenizer.from_pretrained(release).model_max_length > 10**9


def test_export_onto_itself_refreshes_the_code_and_keeps_the_weights(tiny_bert, tmp_path):
    folder = tmp_path / "start"
    run_lam("init", tiny_bert, folder)
    run_lam("export", folder, folder)
    before = weights_checksum(folder / "model.safetensors")
    (folder / "modeling_lam.py").write_text("broken")
    run_lam("export", folder, folder)
    assert weights_checksum(folder / "model.safetensors") == before
    assert (folder / "modeling_lam.py").read_text() != "broken"


def test_errors_are_one_clear_line(tiny_bert, data, tmp_path):
    text, dev = data
    assert "--gate must be" in run_lam("init", tiny_bert, tmp_path / "a", "--gate", "half", code=1)
    run_lam("init", tiny_bert, tmp_path / "b")
    assert "is not empty" in run_lam("init", tiny_bert, tmp_path / "b", code=1)
    distill = ("train", "distill", tmp_path / "b", tmp_path / "run", "--dev", dev, "--teacher", tiny_bert)
    assert "Give some text" in run_lam(*distill, code=1)
    assert "nowhere" in run_lam(*distill, "--text", tmp_path / "nowhere", code=1)
    small = ("--tokens-per-batch", 64, "--steps", 2)
    run_lam(*distill, "--text", text, *small)
    assert "learning_rate" in run_lam(*distill, "--text", text, *small, "--learning-rate", 0.5, code=1)
    assert "damaged" in _with_truncated_weights(tmp_path / "b", tmp_path / "c")


def _with_truncated_weights(folder, out):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return run_lam("export", folder, out, code=1)


LAZY = """
import sys
import lam_transformers.cli
loaded = {"torch", "transformers", "numpy"} & sys.modules.keys()
assert not loaded, loaded
"""


def test_the_command_itself_loads_nothing_large():
    done = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_command_has_its_help():
    for command in ("init", "export", "export-onnx", "convert", "inspect", "push", "encode", "report", "compare"):
        assert f"Usage: root {command} " in run_lam(command, "--help")
