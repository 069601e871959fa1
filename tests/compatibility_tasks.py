"""What a user does with a LAM, each compared with one pass over the same text. Run by test_compatibility.py.

    python -P compatibility_tasks.py stranger|installed OUT

from a folder that holds LAM-base-v1; a stranger has no lam_transformers. Writes {task: error or null} as JSON.
"""

import functools
import json
import os
import sys
import traceback
from pathlib import Path

if sys.argv[1] == "stranger":
    sys.modules["lam_transformers"] = None
else:
    import lam_transformers

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

FOLDER = "LAM-base-v1"
INSTALLED = sys.argv[1] == "installed"
# The last tokens of a text come long after the first segments: a memory that begins anew in each changes everything.
WHOLE = "LAM_COMPATIBILITY" in os.environ
TOKENS = 12_000 if WHOLE else 3_200
BOUND = 1e-5
WORDS = """
    the river was slow and wide; old people told that it had once carried whole villages to the sea. every spring we
    count what is left: seven boats, two bridges, a mill, four hundred sheep. nobody knows who built the tower, or why.
""".split()  # noqa: SIM905
SHORT = ["A man is playing a guitar on the street.", "Someone plays music.", "word " * 300, ""]


def load(path) -> SentenceTransformer:
    """With the code of the folder; where the package is installed, with the package's own."""
    if INSTALLED:
        return lam_transformers.LAMEncoder(str(path), device="cpu").model
    return SentenceTransformer(str(path), trust_remote_code=True, device="cpu")


@functools.cache
def long_text() -> str:
    rng = np.random.default_rng(0)
    return " ".join(WORDS[i] for i in rng.integers(len(WORDS), size=TOKENS))


@functools.cache
def one_pass(encoder, text: str) -> torch.Tensor:
    """The token states [T, D] of a text from one call over all of it, without segments."""
    ids = encoder.tokenizer(text, return_tensors="pt", truncation=False, verbose=False)["input_ids"]
    lam = encoder.transformers_model.requires_grad_(False)
    with torch.enable_grad():  # without gradients LAM reads long texts in segments
        return lam(input_ids=ids).last_hidden_state[0]


def pooled(states: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(states.mean(0, dtype=torch.float64), dim=-1).float().numpy()


def same(what: str, got, want) -> None:
    error = float(np.abs(np.asarray(got) - np.asarray(want)).max())
    assert error <= BOUND, f"{what}: {error:.1e} from one pass"


def encode(encoder, folder: Path) -> None:
    for text, got in zip(SHORT, encoder.encode(SHORT), strict=True):
        same(repr(text[:20]), got, pooled(one_pass(encoder, text)))


def long(encoder, folder: Path) -> None:
    text = long_text()
    states = one_pass(encoder, text)
    assert len(states) >= TOKENS
    same("encode", encoder.encode(text), pooled(states))
    same("encode in a batch", encoder.encode([SHORT[0], text, SHORT[1]])[1], pooled(states))
    if INSTALLED:
        from lam_transformers.cli.app import app
        from lam_transformers.encoding import late_chunks

        chunks = late_chunks(encoder, text, 500)
        assert len(chunks) == -(-(len(states) - 2) // 500)
        for i, chunk in enumerate(chunks):
            same(f"late chunk {i}", chunk.embedding, pooled(states[1:-1][500 * i : 500 * (i + 1)]))
        (folder / "texts.jsonl").write_text(json.dumps({"text": text}) + "\n")
        arguments = [str(folder / "texts.jsonl"), "--out", str(folder / "out"), "--model", FOLDER, "--format", "npy"]
        app(["encode", *arguments], standalone_mode=False)
        (shard,) = (np.load(path) for path in (folder / "out").rglob("*.npy"))
        same("lam encode", shard[0], pooled(states))


def session(encoder, folder: Path) -> None:
    text = long_text()
    want = one_pass(encoder, text)
    if INSTALLED:
        from lam_transformers.encoding import LAMSession

        running = LAMSession(encoder)
        for start in range(0, len(text), 7001):
            running.append(text[start : start + 7001])
            if start == 2 * 7001:
                running.save(folder / "session")
                running = LAMSession.load(folder / "session", encoder)
        same("LAMSession", running.embedding(), pooled(want))
    lam = encoder.transformers_model
    ids = encoder.tokenizer(text, return_tensors="pt", truncation=False, verbose=False)["input_ids"]
    for name in ("cache", "cache_params", "past_key_values"):
        state, states = lam.new_state(1), []
        with torch.no_grad():
            for start in range(0, 3072, 1024):  # where a model that reads two ways can be cut
                output = lam(input_ids=ids[:, start : start + 1024], **{name: state})
                states.append(output.last_hidden_state[0])
                state = output.cache if start % 2048 else output.cache_params
        same(name, torch.cat(states), want[:3072])


def train(encoder, folder: Path) -> None:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    encoder = load(FOLDER)
    pairs = [(f"{a} {b} {c}", f"{c} {a}") for a, b, c in zip(WORDS, WORDS[3:], WORDS[9:], strict=False)][:16]
    data = Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [b for _, b in pairs]})

    def loss() -> float:
        a, b = (torch.from_numpy(encoder.encode(list(x))) for x in zip(*pairs, strict=True))
        return float(torch.nn.functional.cross_entropy(20 * a @ b.T, torch.arange(len(pairs))))

    before = loss()
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "run"), max_steps=6, per_device_train_batch_size=16, learning_rate=2e-5,
        use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(
        model=encoder, args=arguments, train_dataset=data, loss=MultipleNegativesRankingLoss(encoder)
    )
    trainer.train()
    assert loss() < before, f"six updates took the loss from {before:.4f} to {loss():.4f}"
    encoder.save_pretrained(str(folder / "trained"))
    again = load(folder / "trained")
    same("saved and loaded again", again.encode(SHORT), encoder.encode(SHORT))


def export(encoder, folder: Path) -> None:
    lam = encoder.transformers_model
    if INSTALLED:
        from lam_transformers.checkpoints.export import export_model

        export_model(FOLDER, folder / "exported", torch.float32)
        again = load(folder / "exported")
        same("lam export", again.encode(SHORT), encoder.encode(SHORT))
    if INSTALLED and WHOLE:  # else tests/checkpoints/test_onnx.py is enough, which does it with a small model
        from lam_transformers.checkpoints.onnx import export_segment

        program = export_segment(lam, 1, 8)
        ids, memory, conv, seen, length = program.example_inputs[0]
        ids = ids + torch.arange(1000, 1008)
        with torch.no_grad():
            states = program.module()(ids, memory, conv, seen, length)[0]
            same("torch.export", states, lam(input_ids=ids).last_hidden_state)
    lam.save_pretrained(folder / "saved")
    loaded = AutoModel.from_pretrained(folder / "saved", trust_remote_code=True)
    ids = encoder.tokenizer(SHORT[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        same("save_pretrained", loaded(input_ids=ids).last_hidden_state, lam(input_ids=ids).last_hidden_state)


TASKS = {"encode": encode, "long text": long, "session": session, "train": train, "export": export}


def main() -> None:
    torch.set_num_threads(1)
    encoder = load(FOLDER)
    module = type(encoder.transformers_model).__module__
    assert module.startswith("lam_transformers" if INSTALLED else "transformers_modules"), module
    if INSTALLED:
        print("installed:", lam_transformers.__file__)
    folder, found = Path(sys.argv[2]).parent, {}
    for name, task in TASKS.items():
        try:
            task(encoder, folder)
            found[name] = None
        except Exception as error:
            traceback.print_exc()
            found[name] = f"{type(error).__name__}: {error}"
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
