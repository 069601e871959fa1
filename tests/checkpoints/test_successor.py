"""`lam convert --to gated_delta`: what a LAM takes over from a published checkpoint, and how it goes on."""

import json

import pytest
import torch
from transformers import AutoModel

from lam_transformers import LAMModel, LAMPublishedModel
from lam_transformers.checkpoints.convert import convert
from lam_transformers.checkpoints.report import format_report

from ..helpers import assert_close_rms, hidden, random_ids, run_lam
from .published_checkpoints import SMALL, one_file


@pytest.mark.parametrize(("layout", "gate"), [("final", None), ("main", "8"), ("main", "none")])
def test_the_successor_takes_over_what_corresponds(source, out, layout, gate):
    weights = one_file(layout, SMALL)
    torch.save(weights, source / "pytorch_model.bin")
    report = convert([source], out, to="gated_delta", gate=gate)
    model, info = LAMModel.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(model.embeddings.word_embeddings.weight, weights["embeddings.word_embeddings.weight"])
    size = SMALL.hidden
    for i, layer in enumerate(model.layers):
        theirs = {k.removeprefix(f"deltanet_layers.{i}."): x for k, x in weights.items()}
        memory, teacher = layer.memory, f"teacher_model.encoder.layer.{i}."
        assert torch.equal(memory.in_proj.weight[size : 2 * size], theirs["k_proj.weight"])
        assert torch.equal(memory.conv1d.weight[:size, :, 1:], theirs["q_conv1d.conv.weight"][..., :3])
        assert torch.equal(layer.feed_forward.out_proj.weight, weights[teacher + "output.dense.weight"])
        assert torch.equal(layer.memory_norm.bias, weights[teacher + "attention.output.LayerNorm.bias"])
        x = torch.randn(5, size, generator=torch.Generator().manual_seed(0))
        parts = memory.in_proj(x).split([3 * size, *[SMALL.heads] * 5, memory.gate_size], dim=-1)
        for part, name in ((1, "b_proj"), (4, "fast_gate_proj"), (5, "slow_gate_proj")):
            assert_close_rms(name, parts[part], x @ theirs[f"{name}.weight"].T, 1e-5)
        if gate is None:
            assert_close_rms("output gate", parts[-1], x @ theirs["g_proj.weight"].T, 1e-5)
        bilinear = theirs["resonance_flux.W_bilinear"]
        assert torch.equal(memory.flux.bilinear, bilinear.expand_as(memory.flux.bilinear))
    assert report["needs_distillation"]
    how = {row["to"]: row["how"] for row in report["mapping"]}
    assert how["memory: output gate"].startswith({None: "copied", "8": "best approximation", "none": "left out"}[gate])
    assert "looks ahead" in how["memory: convolution"]
    text = format_report(report)
    assert "needs distillation: lam train distill" in text
    assert "It is not trained" in (out / "README.md").read_text()
    assert hidden(model, random_ids(2, 30, vocab_size=SMALL.vocab)).isfinite().all()


def test_the_converted_model_teaches_its_successor(source, out, tmp_path):
    torch.save(one_file("main", SMALL), source / "pytorch_model.bin")
    run_lam("convert", source, out)
    run_lam("convert", source, tmp_path / "start", "--to", "gated_delta", "--gate", "8")
    words = "the man woman dog cat plays runs sleeps eats music".split()  # noqa: SIM905
    sentences = [f"the {a} {b} the {c}" for a in words for b in words for c in words[:3]]
    (tmp_path / "text.txt").write_text("\n".join(sentences))
    pairs = [
        {"sentence1": a, "sentence2": b, "score": i % 6}
        for i, (a, b) in enumerate(zip(sentences, sentences[7:40], strict=False))
    ]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    message = run_lam(
        "train", "distill", tmp_path / "start", tmp_path / "run", "--teacher", out, "--text", tmp_path / "text.txt",
        "--dev", tmp_path / "dev.jsonl", "--steps", 4, "--tokens-per-batch", 64, "--evaluate-every", 4,
    )  # fmt: skip
    assert "Best STS-B dev Pearson" in message
    (tmp_path / "long.txt").write_text("\n".join(["the cat " * 200 + x for x in sentences[:16]]))
    long = ("--text", tmp_path / "long.txt", "--dev", tmp_path / "dev.jsonl", "--max-length", 400)
    message = run_lam("train", "distill", tmp_path / "start", tmp_path / "long", "--teacher", out, *long, code=1)
    assert "reads at most 320 tokens, a text has 400: use --max-length 320" in message
    assert type(AutoModel.from_pretrained(out)) is LAMPublishedModel
    assert type(LAMModel.from_pretrained(tmp_path / "run" / "best")) is LAMModel
