"""`lam export-onnx`: the graphs equal the model, and the reader reads texts of any length, without torch."""

import json
import random
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from handbook import HANDBOOK, ROOT, read_passages
from torch.nn import functional as F

from lam_transformers import LAMEncoder, LAMModel
from lam_transformers.checkpoints.onnx import export_onnx

from ..conftest import WORDS
from ..helpers import random_ids, run_lam

LENGTHS = (1, 2, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100)
CONFIGURATIONS = {
    "one way": {},
    "two ways": {"two_way_chunk": 32},
    "two ways, odd": {"two_way_chunk": 6},
    "no gate": {"output_gate_rank": 0, "two_way_chunk": 64},
    "full gate": {"output_gate_rank": None, "conv_kernel": 2},
    "one tap": {"conv_kernel": 1},
}


def session(folder, name="model.onnx"):
    return onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])


def run(graph, ids, mask=None):
    ids = np.asarray(ids)
    return graph.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids) if mask is None else mask})


@torch.no_grad()
def hidden(model, ids):
    return model(input_ids=torch.as_tensor(ids).reshape(1, -1)).last_hidden_state[0]


def embedding(states):
    return F.normalize(states.double().mean(0), dim=0).float().numpy()


def words(count, seed=0):
    return " ".join(random.Random(seed).choices(WORDS, k=count))


@pytest.mark.parametrize("changes", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_any_length_and_any_padding_equal_the_model(make_folder, changes):
    folder, model, _ = make_folder(**changes)
    graph = session(folder)
    texts = [random_ids(n, vocab_size=model.config.vocab_size, seed=n) for n in LENGTHS]
    want = [hidden(model, ids) for ids in texts]
    for ids, states in zip(texts, want, strict=True):
        got, tokens = run(graph, ids.unsqueeze(0))
        np.testing.assert_allclose(got[0], embedding(states), atol=1e-5, err_msg=f"{len(ids)} tokens")
        np.testing.assert_allclose(tokens[0], states, atol=1e-4)
    # All in one batch: padded left, padded right, and with holes.
    longest = max(LENGTHS) + 9
    rng = np.random.default_rng(0)
    ids = rng.integers(0, model.config.vocab_size, (len(texts), longest))
    mask = np.zeros_like(ids)
    for row, text in enumerate(texts):
        places = [
            np.arange(longest)[-len(text) :],
            np.arange(len(text)),
            np.sort(rng.permutation(longest)[: len(text)]),
        ]
        mask[row, places[row % 3]] = 1
        ids[row, places[row % 3]] = text
    got, tokens = run(graph, ids, mask)
    for row, states in enumerate(want):
        np.testing.assert_allclose(got[row], embedding(states), atol=1e-5, err_msg=f"{LENGTHS[row]} tokens")
        np.testing.assert_allclose(tokens[row][mask[row] == 1], states, atol=1e-4)
    assert not tokens[mask == 0].any()


def test_rows_without_tokens_are_zero(two_way):
    got, tokens = run(session(two_way.folder), [[3, 4], [5, 6]], np.array([[0, 0], [1, 1]]))
    assert not got[0].any()
    assert not tokens[0].any()
    np.testing.assert_allclose(got[1], embedding(hidden(two_way.model, [5, 6])), atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_the_graphs_pass_the_checker_and_share_their_weights(make_folder, precision):
    folder, model, _ = make_folder(precision, hidden_size=256, num_attention_heads=4, intermediate_size=256)
    onnx.checker.check_model(folder / "model.onnx", full_check=False)
    onnx.checker.check_model(folder / "model_stream.onnx", full_check=False)
    assert (folder / "model_stream.onnx").stat().st_size < (folder / "model.onnx").stat().st_size
    ids = random_ids(40, vocab_size=model.config.vocab_size)
    got = run(session(folder), ids.unsqueeze(0))[0][0]
    assert got @ embedding(hidden(model, ids)) > {"float32": 1 - 1e-6, "float16": 1 - 1e-4, "int8": 0.995}[precision]


@pytest.mark.parametrize("changes", [{}, {"two_way_chunk": 32}], ids=["one way", "two ways"])
def test_int8_gives_a_text_one_vector_in_every_batch(make_folder, changes):
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 256}
    folder, model, _ = make_folder("int8", **sizes, **changes)
    graph = session(folder)
    for length in (5, 16, 30):  # two of them are one chunk of the rule alone, and none is in the batch
        ids = random_ids(length, vocab_size=model.config.vocab_size).numpy()
        alone = run(graph, ids[None])[0][0]
        others = np.random.default_rng(0).integers(0, model.config.vocab_size, (5, 50))
        others[2, :length] = ids
        mask = np.ones_like(others)
        mask[2, length:] = 0
        np.testing.assert_allclose(run(graph, others, mask)[0][2], alone, atol=1e-6)


def test_the_reader_equals_the_package(two_way, encoder):
    texts = ["", "a", "the man plays", words(300), "the dog [SEP] runs", "the \n cat", "\u732b the", words(40), "??"]
    torch_encoder = LAMEncoder(two_way.source)
    want = torch_encoder.encode(texts)
    np.testing.assert_allclose(encoder.encode(texts), want, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(texts[::-1])[::-1], want, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(texts[2]), want[2], atol=1e-5)
    assert encoder.encode([]).shape == (0, two_way.model.config.hidden_size)
    similarity = encoder.similarity(want, want[0])
    assert similarity.shape == (len(texts),)
    assert similarity[0] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "text", [words(3000), "the " * 2000, "x" * 70_000 + " the", "\u732b" * 40_000], ids=[0, 1, 2, 3]
)
def test_long_texts_in_pieces_equal_the_package(two_way, encoder, text):
    want = LAMEncoder(two_way.source).encode([text])[0]
    np.testing.assert_allclose(encoder.encode_long(text), want, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(["a", text])[1], want, atol=1e-5)
    step = len(text) // 7
    np.testing.assert_allclose(
        encoder.encode_long(text[i : i + step] for i in range(0, len(text), step)), want, atol=1e-5
    )


def test_a_reading_goes_on_after_it_was_asked_and_saved(encoder, tmp_path):
    text = words(2500)
    reading = encoder.open()
    reading.add(text[:9001])
    np.testing.assert_allclose(reading.embedding(), encoder.encode(text[:9001]), atol=1e-5)
    reading.save(tmp_path / "reading.npz")
    for going_on in (reading, encoder.open(tmp_path / "reading.npz")):
        going_on.add(text[9001:])
        np.testing.assert_allclose(going_on.embedding(), encoder.encode(text), atol=1e-5)


def test_a_reading_of_another_model_or_a_damaged_one_is_refused(encoder, make_folder, reader, tmp_path):
    path = tmp_path / "reading.npz"
    reader.Encoder(make_folder(seed=1, two_way_chunk=32).folder).open().save(path)
    with pytest.raises(ValueError, match="written by another model"):
        encoder.open(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="damaged or holds no reading"):
        encoder.open(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="damaged or holds no reading"):
        encoder.open(path)


@pytest.mark.parametrize(
    "text", ["x" * 1_000_000, "\u2603" * 1000, "\U0001f600", " " * 100_000], ids=["a", "b", "c", "d"]
)
def test_strange_texts_have_the_packages_vectors(two_way, encoder, text):
    np.testing.assert_allclose(encoder.encode(text), LAMEncoder(two_way.source).encode([text])[0], atol=1e-5)


def test_what_is_no_text_is_refused(encoder):
    for wrong in (None, 3, b"bytes"):
        with pytest.raises(ValueError, match="LAM embeds strings"):
            encoder.encode([wrong])
    with pytest.raises(ValueError, match="surrogates not allowed"):
        encoder.encode_long("a \ud800")
    with pytest.raises(ValueError, match="without a place to cut"):
        encoder.encode("\u00e9" * 1_000_001)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.onnx", "model_stream.onnx", "lam_onnx.json"])
def test_an_incomplete_folder_is_named(two_way, reader, tmp_path, name):
    folder = shutil.copytree(two_way.folder, tmp_path / "folder")
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {name}"):
        reader.Encoder(folder)


def test_another_models_onnx_is_refused(two_way, make_folder, reader, tmp_path):
    folder = shutil.copytree(two_way.folder, tmp_path / "folder")
    other, *_ = make_folder(seed=1, two_way_chunk=32)
    shutil.copy(other / "model.onnx", folder)
    with pytest.raises(ValueError, match="is not the model that lam_onnx.json describes"):
        reader.Encoder(folder).encode("a")


def test_an_older_onnxruntime_is_told_what_is_needed(two_way, reader, monkeypatch):
    needed = json.loads((two_way.folder / "lam_onnx.json").read_text())["onnxruntime"]
    monkeypatch.setattr(reader.onnxruntime, "__version__", "1.9.3")
    with pytest.raises(ImportError, match=f"needs onnxruntime {needed} or newer, found 1.9.3"):
        reader.Encoder(two_way.folder)


def test_the_folder_needs_three_packages(two_way):
    """In a process that can import neither torch nor transformers nor this package."""
    assert len((two_way.folder / "lam_onnx.py").read_text().splitlines()) < 200
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'lam_transformers', 'onnx'): sys.modules[name] = None\n"
        "from lam_onnx import Encoder\n"
        "print(Encoder('.').encode(['the man', '']).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=two_way.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"(2, {two_way.model.config.hidden_size})"


def test_what_cannot_be_exported_is_refused(tiny_folder, tmp_path):
    assert "is to be a folder" in run_lam("export-onnx", tiny_folder, tmp_path / "lam.onnx", code=1)
    assert "precision must be one of" in run_lam(
        "export-onnx", tiny_folder, tmp_path / "x", "--precision", "int4", code=1
    )
    assert "Wrote" in run_lam("export-onnx", tiny_folder, tmp_path / "out", "--precision", "float16")
    (tiny_folder / "sentence_lam_config.json").write_text('{"pooling_mode": "max"}')
    assert "mean pooling" in run_lam("export-onnx", tiny_folder, tmp_path / "y", code=1)
    config = json.loads((tiny_folder / "config.json").read_text())
    (tiny_folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    assert "hidden_act gelu" in run_lam("export-onnx", tiny_folder, tmp_path / "y", code=1)
    assert not (tmp_path / "y").exists()


def test_without_the_extra_the_command_says_so(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "lam_transformers.checkpoints.onnx_lam", raising=False)
    monkeypatch.delitem(sys.modules, "lam_transformers.checkpoints.onnx_graph", raising=False)
    assert "extra `onnx`" in run_lam("export-onnx", tiny_folder, tmp_path / "out", code=1)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A folder with the released model in each precision."""
    folder = tmp_path_factory.mktemp("released")
    for precision in ("float32", "float16", "int8"):
        export_onnx(ROOT / "LAM-base-v1", folder / precision, precision)
    return folder


@pytest.mark.slow
def test_the_released_model_at_every_length(released, reader):
    model = LAMModel.from_pretrained(ROOT / "LAM-base-v1").eval()
    encoder = reader.Encoder(released / "float32")
    for length in (1, 2, 31, 32, 33, 127, 128, 1000, 4097):
        ids = random_ids(length, vocab_size=model.config.vocab_size, seed=length)
        got = run(encoder.session("model.onnx"), ids.unsqueeze(0))[0][0]
        np.testing.assert_allclose(got, embedding(hidden(model, ids)), atol=1e-5, err_msg=f"{length} tokens")


@pytest.mark.slow
def test_the_released_model_reads_100_000_tokens(released, reader):
    encoder = reader.Encoder(released / "float32")
    text = HANDBOOK.read_text(encoding="utf-8")
    text = text * (100_000 // len(encoder.tokens(text)) + 1)
    want = LAMEncoder(ROOT / "LAM-base-v1").encode([text])[0]
    got = encoder.encode_long(text)
    print(f"largest difference {np.abs(got - want).max():.1e}")
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "megabytes", "least"), [("float32", 93, 1), ("float16", 47, 1), ("int8", 26, 0.98)]
)
def test_the_released_model_in_each_precision(released, reader, precision, megabytes, least):
    assert (released / precision / "model.onnx").stat().st_size < megabytes * 1e6
    assert (released / precision / "model_stream.onnx").stat().st_size < 1e6
    texts = [passage for passage in read_passages() if passage][:20]
    want = LAMEncoder(ROOT / "LAM-base-v1").encode(texts)
    got = reader.Encoder(released / precision).encode(texts)
    assert (got * want).sum(1).min() > least - 1e-5
    # The weights that were released are float16 numbers.
    if least == 1:
        np.testing.assert_allclose(got, want, atol=1e-5)
