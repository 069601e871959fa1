"""What the engines compute is what `SentenceTransformer.encode` computes, whatever else is in the row."""

import threading

import numpy as np
import pytest

from lam_transformers import LAMSession, late_chunks
from lam_transformers.io.loading import load_sentence_transformer
from lam_transformers.serving.engine import LAMEngine, PaddedEngine, TextReader, longest_text, make_engine
from lam_transformers.serving.errors import Cancelled, InvalidInput
from lam_transformers.serving.scheduler import Scheduler
from lam_transformers.serving.turns import in_turns

from .serving_texts import sentences, words

EXACT = 1e-6


@pytest.fixture(scope="module", params=["lam", "bert"])
def model(request, serving_folder, padded_folder):
    folder = serving_folder if request.param == "lam" else padded_folder
    return load_sentence_transformer(folder, device="cpu")


@pytest.fixture(scope="module")
def reader(model):
    return TextReader(model, longest_text(model))


@pytest.fixture
def scheduler(model):
    scheduler = Scheduler(make_engine(model))
    yield scheduler
    assert scheduler.stop(30)


def test_the_engine_fits_the_model(model):
    assert type(make_engine(model)) is (LAMEngine if hasattr(model[0], "text_tokenizer") else PaddedEngine)


def test_texts_of_many_jobs_equal_encode(model, reader, scheduler):
    texts = sentences(120)
    jobs = [scheduler.submit([reader.read(text) for text in texts[i : i + 1 + i % 7]]) for i in range(0, 120, 7)]
    for i, job in zip(range(0, 120, 7), jobs, strict=True):
        assert abs(job.future.result(30) - model.encode(texts[i : i + 1 + i % 7])).max() < EXACT


def test_prompts(model, reader, scheduler):
    prompt = "the old house "
    for include in (True, False):
        model.set_pooling_include_prompt(include)
        try:
            tokens = [TextReader(model, longest_text(model)).read(text, prompt) for text in sentences(9)]
            tokens.append(reader.read("the river"))  # without a prompt, in the same row where that can be
            got = scheduler.submit(tokens).future.result(30)
            assert abs(got[:9] - model.encode(sentences(9), prompt=prompt)).max() < EXACT
            assert abs(got[9] - model.encode("the river")).max() < EXACT
        finally:
            model.set_pooling_include_prompt(True)


def test_states_of_tokens(model, reader):
    texts = sentences(5)
    got = make_engine(model).token_states([reader.read(text) for text in texts])
    want = model.encode(texts, output_value="token_embeddings")
    for states, expected in zip(got, want, strict=True):
        assert abs(states - expected.numpy()).max() < 1e-5


@pytest.mark.parametrize("count", [1023, 1024, 1025, 2047, 2048, 2049, 5000])
def test_long_texts_equal_encode(serving_model, count):
    scheduler = Scheduler(make_engine(serving_model))
    text = words(count - 2)
    tokens = TextReader(serving_model, None).read(text)
    assert len(tokens) == count
    short = sentences(30)
    jobs = [scheduler.submit([tokens])]
    jobs += [scheduler.submit([TextReader(serving_model, None).read(x)]) for x in short]
    assert abs(jobs[0].future.result(60)[0] - serving_model.encode(text)).max() < EXACT
    got = np.concatenate([job.future.result(60) for job in jobs[1:]])
    assert abs(got - serving_model.encode(short)).max() < EXACT
    assert scheduler.stop(30)


def test_a_long_text_whose_prompt_is_not_pooled(serving_folder):
    model = load_sentence_transformer(serving_folder, device="cpu")
    model.set_pooling_include_prompt(False)
    scheduler = Scheduler(make_engine(model))
    text = words(3000)
    tokens = TextReader(model, None).read(text, "the old house ")
    got = scheduler.submit([tokens]).future.result(60)[0]
    assert abs(got - model.encode(text, prompt="the old house ")).max() < EXACT
    assert scheduler.stop(30)


def test_token_ids_are_texts(model, reader, scheduler):
    text = "the old woman reads"
    whole = reader.read(text).ids.tolist()
    got = scheduler.submit([reader.take(whole), reader.take(whole[1:-1])]).future.result(30)
    assert abs(got - model.encode(text)).max() < EXACT
    for ids in ([], [-1], [reader.vocabulary], [10**12]):
        with pytest.raises(InvalidInput):
            reader.take(ids)


def test_truncation(padded_folder):
    model = load_sentence_transformer(padded_folder, device="cpu")
    reader = TextReader(model, longest_text(model))
    text = words(100)
    with pytest.raises(InvalidInput, match="more than 48 tokens"):
        reader.read(text)
    cut = reader.read(text, truncate=True)
    assert len(cut) == 48
    assert cut.truncated
    scheduler = Scheduler(make_engine(model))
    assert abs(scheduler.submit([cut]).future.result(30)[0] - model.encode(text)).max() < EXACT
    left = reader.read(text, truncate=True, from_left=True)
    last = " ".join(text.split()[-46:])
    assert abs(scheduler.submit([left]).future.result(30)[0] - model.encode(last)).max() < EXACT
    assert not reader.read(words(46)).truncated
    assert scheduler.stop(30)


def test_refusals_do_not_repeat_the_text(reader):
    for text in ("secret \ud800", "secret" + "é" * 1_000_001):
        with pytest.raises(InvalidInput) as refused:
            reader.read(text)
        assert "secret" not in refused.value.message


def test_sessions_and_late_chunks_take_turns(serving_model):
    """Both run in threads of their own and share the model with short texts; the results are those of a model alone."""
    scheduler = Scheduler(make_engine(serving_model))
    reader = TextReader(serving_model, None)
    text = ". ".join(sentences(300))
    results = {}

    def write(model):
        session = LAMSession(model)
        for start in range(0, len(text), 997):
            session.append(text[start : start + 997])
        return session.embedding()

    def work(name, function):
        job = scheduler.open(10_000)
        results[name] = in_turns(scheduler, serving_model, job, function)

    threads = [
        threading.Thread(target=work, args=("session", write)),
        threading.Thread(target=work, args=("chunks", lambda model: late_chunks(model, text, "sentence"))),
    ]
    for thread in threads:
        thread.start()
    short = sentences(40, 5)
    got = [scheduler.submit([reader.read(x)]).future.result(60)[0] for x in short]
    for thread in threads:
        thread.join(60)
    assert abs(np.stack(got) - serving_model.encode(short)).max() < EXACT
    assert abs(results["session"] - serving_model.encode(text)).max() < EXACT
    want = late_chunks(serving_model, text, "sentence")
    assert [(c.start, c.end) for c in results["chunks"]] == [(c.start, c.end) for c in want]
    assert max(abs(a.embedding - b.embedding).max() for a, b in zip(results["chunks"], want, strict=True)) < EXACT
    assert scheduler.stop(30)


def test_a_cancelled_session_reads_no_further(serving_model):
    scheduler = Scheduler(make_engine(serving_model))
    job = scheduler.open(10, on_progress=lambda read: job.cancel())
    with pytest.raises(Cancelled):
        in_turns(scheduler, serving_model, job, lambda model: LAMSession(model).append(words(20_000)))
    assert job.read == 2048
    assert scheduler.stop(30)
