"""Late chunks, appendable embeddings and the small wrapper."""

import json
import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lam_transformers.checkpoints.export import export_model
from lam_transformers.encoding import LAMEncoder, LAMSession, chunks, late_chunks, session
from lam_transformers.encoding.pipeline import Pipeline
from lam_transformers.model import state_lam, streaming_lam
from lam_transformers.model.state_lam import load_tensors

from ..helpers import flipped

TEXT = (
    "The dog runs in the house. A woman reads a book!  Slowly, the cat sleeps...\n"
    "\n"
    "A man sings; the river is red. \u4e2d\u6587\u3002\u6c34\u3002 The child plays\n \n\n"
    "old [SEP] music, street.\n"
)


@pytest.fixture(scope="module")
def folder(tiny_model, tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("encoding")
    tiny_model.save_pretrained(root / "source")
    tokenizer.save_pretrained(root / "source")
    export_model(root / "source", root / "own", torch.float32)
    export_model(root / "source", root / "stock", torch.float32, stock=True)
    return root


@pytest.fixture(scope="module")
def encoder(folder):
    return LAMEncoder(folder / "own")


def close(a, b, bound=1e-5):
    return np.abs(np.asarray(a) - np.asarray(b)).max() <= bound


def token_states(encoder, text):
    """States [T, D] and offsets [T, 2] of all tokens but the special ones, from one plain pass."""
    batch = encoder.model.tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
    with torch.inference_mode():
        states = encoder.model[0].model(input_ids=batch["input_ids"]).last_hidden_state[0]
    return states[1:-1].numpy(), batch["offset_mapping"][0, 1:-1].numpy()


def pooled(states):
    mean = states.mean(0, dtype=np.float64)
    return mean / np.linalg.norm(mean)


def test_sentences_and_paragraphs_of_a_text(encoder):
    sentences = [chunk.text for chunk in late_chunks(encoder, TEXT, "sentence")]
    assert sentences == [
        "The dog runs in the house.", "A woman reads a book!", "Slowly, the cat sleeps...",
        "A man sings; the river is red.", "\u4e2d\u6587\u3002", "\u6c34\u3002", "The child plays",
        "old [SEP] music, street.",
    ]  # fmt: skip
    paragraphs = late_chunks(encoder, TEXT, "paragraph")
    assert [chunk.text for chunk in paragraphs] == [p.strip() for p in TEXT.split("\n\n")]
    assert late_chunks(encoder, "", "sentence") == late_chunks(encoder, " \n\n ", "paragraph") == []
    assert late_chunks(encoder, "", 5) == late_chunks(encoder, "", []) == []


@pytest.mark.parametrize("boundaries", ["sentence", "paragraph", [(0, 3), (4, 11), (30, 90)]])
@pytest.mark.parametrize("segment", [5, 2048])
def test_a_chunk_is_the_mean_of_its_tokens_in_context(encoder, boundaries, segment, monkeypatch):
    monkeypatch.setattr(chunks, "SEGMENT", segment)
    monkeypatch.setattr(streaming_lam, "PIECE", 8 * segment)
    states, offsets = token_states(encoder, TEXT)
    got = late_chunks(encoder, TEXT, boundaries)
    assert got
    for chunk in got:
        assert chunk.text == TEXT[chunk.start : chunk.end]
        inside = (offsets[:, 0] >= chunk.start) & (offsets[:, 1] <= chunk.end)
        assert chunk.embedding.dtype == np.float32
        assert close(chunk.embedding, pooled(states[inside]))


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_chunks_of_a_fixed_number_of_tokens(encoder, size, monkeypatch):
    monkeypatch.setattr(chunks, "SEGMENT", 5)
    states, offsets = token_states(encoder, TEXT)
    got = late_chunks(encoder, TEXT, size)
    assert len(got) == -(-len(states) // size)
    for i, chunk in enumerate(got):
        assert (chunk.start, chunk.end) == (offsets[i * size][0], offsets[min((i + 1) * size, len(states)) - 1][1])
        assert close(chunk.embedding, pooled(states[i * size : (i + 1) * size]))


def test_the_context_counts_and_what_follows_does_not(encoder):
    tail = " The dog sleeps."
    first = late_chunks(encoder, "A man sings in the house." + tail)[-1]
    second = late_chunks(encoder, "The river is red." + tail)[-1]
    third = late_chunks(encoder, "The river is red." + tail + " A woman reads.")[1]
    assert first.text == second.text == third.text
    assert not close(first.embedding, second.embedding, 1e-3)
    assert close(second.embedding, third.embedding)


@pytest.mark.parametrize(
    ("boundaries", "message"),
    [
        ([(0, 500)], "out of range"), ([(-1, 4)], "out of range"), ([(4, 4)], "empty"), ([(9, 4)], "empty"),
        ([(0, 7), (4, 11)], "before the one before it ends"), ([(4, 11), (0, 3)], "before the one before it ends"),
        ([(3, 4)], "no whole token"), ([(4, 11), (11, 12)], "no whole token"), ([3], "two integers"),
        ([(1, "x")], "two integers"), ("word", "boundaries must be"), (0, "positive number"), (True, "positive number"),
    ],
)  # fmt: skip
def test_spans_that_do_not_fit_are_named(encoder, boundaries, message):
    with pytest.raises(ValueError, match=message):
        late_chunks(encoder, TEXT, boundaries)


def test_what_is_no_lam_is_refused(encoder, tiny_model):
    for wrong in (None, "LAM-base-v1", tiny_model):
        with pytest.raises(ValueError, match="SentenceTransformer of a LAM"):
            late_chunks(wrong, TEXT)
        with pytest.raises(ValueError, match="SentenceTransformer of a LAM"):
            LAMSession(wrong)
    with pytest.raises(ValueError, match="LAM embeds strings"):
        late_chunks(encoder, b"bytes")


def test_stock_modules_do_as_well(folder, encoder):
    from sentence_transformers import SentenceTransformer

    stock = SentenceTransformer(str(folder / "stock"))
    for a, b in zip(late_chunks(stock, TEXT), late_chunks(encoder, TEXT), strict=True):
        assert close(a.embedding, b.embedding)
    assert close(LAMSession(stock).append(TEXT).embedding(), stock.encode(TEXT))


PIECES = st.lists(
    st.one_of(
        st.sampled_from(["the dog", " runs", "[SE", "P]", ".", " ", "\n\n", "house", "\u4e2d", "\u0301", "x" * 130]),
        st.text("ab .[\u00e9\u200b\x0b", max_size=5),
    ),
    max_size=20,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=PIECES, segment=st.sampled_from([2, 7, 2048]))
def test_appending_equals_encoding_everything(encoder, pieces, segment):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "SEGMENT", segment)
        running = LAMSession(encoder)
        for i, piece in enumerate(pieces):
            running.append(piece)
            if i % 7 == 3:
                assert close(running.embedding(), encoder.encode("".join(pieces[: i + 1])))
        whole = "".join(pieces)
        assert running.characters == len(whole)
        assert close(running.embedding(), encoder.encode(whole))
        assert close(running.embedding(), LAMSession(encoder).append(whole).embedding())
        assert close(encoder.encode_stream(pieces), encoder.encode(whole))


@pytest.mark.parametrize("pooling", ["max", "lasttoken"])
def test_a_session_pools_as_the_model_does(folder, pooling):
    encoder = LAMEncoder(folder / "own")
    encoder.model[0].pooling_mode = pooling
    assert Pipeline(encoder).pooling == pooling
    assert close(LAMSession(encoder).append(TEXT).append(TEXT).embedding(), encoder.encode(TEXT + TEXT))


def test_appending_costs_only_the_new_tokens(encoder, monkeypatch):
    monkeypatch.setattr(session, "SEGMENT", 8)
    running = LAMSession(encoder).append("the dog runs. " * 200)
    seen = []
    hook = encoder.model[0].model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        running.append("the cat sleeps. ")
        running.embedding()
    finally:
        hook.remove()
    assert sum(seen) < 24


def test_many_tiny_appends_to_one_long_word(encoder):
    running = LAMSession(encoder)
    for _ in range(400):
        running.append("a" * 100)
    assert len(running._waiting) < 20_000
    assert close(running.embedding(), encoder.encode("a" * 40_000))


@pytest.mark.parametrize("count", [0, 1, 30])
def test_a_saved_session_goes_on(encoder, tmp_path, monkeypatch, count):
    monkeypatch.setattr(session, "SEGMENT", 8)
    running = LAMSession(encoder).append(TEXT * count)
    running.save(tmp_path / "session.safetensors")
    loaded = LAMSession.load(tmp_path / "session.safetensors", encoder)
    assert np.array_equal(loaded.embedding(), running.embedding())
    for each in (running, loaded):
        each.append("the old dog, ")
    assert np.array_equal(loaded.embedding(), running.embedding())
    assert close(loaded.embedding(), encoder.encode(TEXT * count + "the old dog, "))
    assert [p.name for p in tmp_path.iterdir()] == ["session.safetensors"]


def test_a_session_of_another_model_or_a_damaged_one_is_refused(encoder, make_model, tokenizer, tmp_path):
    make_model(seed=5).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    other, path = LAMEncoder(tmp_path / "other"), tmp_path / "session.safetensors"
    LAMSession(encoder).append(TEXT * 200).save(path)
    with pytest.raises(ValueError, match="another model"):
        LAMSession.load(path, other)
    whole = path.read_bytes()
    for broken in (whole[:100], whole[:-7], b""):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="damaged"):
            LAMSession.load(path, encoder)
    with pytest.raises(ValueError, match="not a saved LAMSession"):
        LAMSession.load(tmp_path / "other/model.safetensors", encoder)


def test_a_failed_append_or_save_changes_nothing(encoder, tmp_path, monkeypatch):
    running = LAMSession(encoder).append(TEXT)
    want, path = running.embedding(), tmp_path / "session.safetensors"
    for bad in (None, b"x", "lone \ud800"):
        with pytest.raises(ValueError, match=r"LAM embeds strings|lone surrogate"):
            running.append(bad)
    with pytest.raises(ValueError, match="without a space"):
        running.append("\u3042" * 1_000_001)
    assert np.array_equal(running.embedding(), want)
    running.save(path)
    before = path.read_bytes()

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        running.append("more text").save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_text_counts_as_read_only_when_its_tokens_are(encoder, monkeypatch, error):
    monkeypatch.setattr(session, "SEGMENT", 8)
    running = LAMSession(encoder).append(TEXT)
    want, characters, calls = running.embedding(), running.characters, []

    def fail(module, args):
        calls.append(module)
        if len(calls) == 3:
            raise error

    hook = encoder.model[0].model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(error):
        running.append(TEXT * 3)
    hook.remove()
    assert running.characters == characters
    assert np.array_equal(running.embedding(), want)
    assert close(running.append(TEXT * 3).embedding(), encoder.encode(TEXT * 4))


def test_a_flipped_bit_in_a_saved_session_is_found(make_model, tokenizer, tmp_path):
    make_model(hidden_size=8).save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    small, path = LAMEncoder(tmp_path / "small"), tmp_path / "session.safetensors"
    running = LAMSession(small).append(TEXT * 200)
    assert running.tokens > 2048
    want = running.embedding()
    running.save(path)
    for damaged in flipped(path.read_bytes()):
        path.write_bytes(damaged)
        try:
            loaded = LAMSession.load(path, small)
        except ValueError:
            continue
        assert np.array_equal(loaded.embedding(), want)


@pytest.fixture
def saved(encoder, tmp_path):
    """A saved session, and what is in the file: tensors, and `about` as a dictionary."""
    path = tmp_path / "session.safetensors"
    running = LAMSession(encoder).append(TEXT * 200)
    running.save(path)
    tensors, about = load_tensors(path, "lam_session", "LAMSession")
    return running, path, tensors, json.loads(about)


def test_a_session_that_lam_0_1_saved_goes_on(encoder, saved):
    running, path, tensors, about = saved
    about["fingerprint"] = state_lam._old_fingerprint(encoder.model[0].model)
    save_file(tensors, path, {"lam_session": json.dumps(about)})
    loaded = LAMSession.load(path, encoder)
    assert np.array_equal(loaded.append("the dog").embedding(), running.append("the dog").embedding())


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("memory", lambda x: x * float("nan"), "memory of layer 0 holds NaN"),
        ("memory", lambda x: x[:1], r"memory is \[1, "), ("conv", lambda x: x.half()[:, 0], r"conv is \["),
        ("seen", lambda x: x - 1, "count is 8192, the state has seen"), ("seen", lambda x: -x, "no number of tokens"),
        ("pooled", lambda x: x / 0, "pooled holds NaN"), ("ids", lambda x: x + 10**6, "beyond the"),
        ("count", lambda x: 0, "count is 0"), ("characters", lambda x: -3, "characters is -3"),
        ("waiting", lambda x: 7, "characters is"), ("seen", None, "it holds"), ("count", None, "KeyError"),
    ],
)  # fmt: skip
def test_a_session_whose_parts_do_not_fit_is_refused(encoder, saved, name, change, message):
    _, path, tensors, about = saved
    parts = tensors if name in tensors else about
    value = parts.pop(name)
    if change is not None:
        parts[name] = change(value)
    tensors = {key: x.contiguous() for key, x in tensors.items()}
    save_file(tensors, path, {"lam_session": json.dumps(about)})
    with pytest.raises(ValueError, match=rf"is damaged and cannot be read as a LAMSession: .*{message}"):
        LAMSession.load(path, encoder)


def test_the_wrapper_runs_no_code_from_the_folder(folder, encoder):
    assert type(encoder.model[0].model).__module__ == "lam_transformers.model.modeling_lam"
    texts = ["the dog runs", "a dog plays", "red water"]
    embeddings = encoder.encode(texts)
    assert embeddings.shape == (3, 64)
    assert close(encoder.similarity(texts, embeddings), embeddings @ embeddings.T)
    assert encoder.similarity("the dog", texts).shape == (1, 3)
    assert close(LAMEncoder(folder / "stock").encode(texts), embeddings)
