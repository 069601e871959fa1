"""The stage on long texts: passages, targets, resets, the one row of positions that is trained, a run."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("scipy", reason="the train extra is not installed")
pytest.importorskip("datasets", reason="the train extra is not installed")

from transformers import AutoTokenizer

from lam_transformers import LAMEncoder, LAMModel
from lam_transformers.checkpoints.export import export_model
from lam_transformers.training import longtext
from lam_transformers.training.longtext import (
    LongTextConfig,
    LongTextTrainer,
    PassageBatches,
    chunk_documents,
    nearest_of_same_source,
    read_documents,
    training_half,
)

from ..conftest import POSITIONS, WORDS
from ..helpers import assert_close_rms
from .conftest import read_log, write_records


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twenty documents, each of a few words of its own."""
    pick = random.Random(0)
    folder = tmp_path_factory.mktemp("data")
    books = []
    for i in range(20):
        own = pick.sample(WORDS, 6)
        text = " ".join(pick.choices(own, k=pick.randint(150, 400)))
        books.append({"_id": f"{i:02d}", "text": f"{text} {i}"})
    write_records(folder / "books.jsonl", books)
    second = ("a cat", "the dog runs", "dog")
    pairs = [{"sentence1": "the dog", "sentence2": text, "score": i} for i, text in enumerate(second)]
    write_records(folder / "dev.jsonl", pairs)
    return folder


def config(**changes):
    settings = {
        "steps": 6, "warmup_steps": 1, "decay_steps": 2, "chunk_tokens": 16, "min_length": 28, "max_length": 70,
        "tokens_per_batch": 400, "documents": ["books.jsonl"], "bf16": False, "dev_passages": 12, "dev_length": 42,
        "learning_rate": 1e-3, "position_learning_rate": 1e-2,
    } | changes  # fmt: skip
    return LongTextConfig(**settings)


def test_half_of_the_books_is_never_read(data):
    files = [data / "books.jsonl"]
    assert len(read_documents(files)[0]) == 20
    texts, counts = read_documents(files, files)
    assert [int(text.split()[-1]) for text in texts] == list(range(10))
    assert counts == {"books.jsonl": {"kept": 10, "held out": 10}}
    assert training_half(["c", "a", "d", "b", "e"]) == ["a", "b"]
    with pytest.raises(ValueError, match="no documents"):
        read_documents([data / "dev.jsonl"])


def test_chunks_are_the_tokens_of_a_text_and_what_they_came_from(tokenizer):
    text = "The dog  runs; the man, and THE woman sings in the street of the house"
    (table,) = chunk_documents([text], tokenizer, 6)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert table.ids.tolist() == ids[: 4 * len(table)]
    assert len(table) == len(ids) // 4
    assert table.text(0) == "The dog  runs;"
    for i in range(len(table)):
        chunk = tokenizer(table.text(i), add_special_tokens=False)["input_ids"]
        assert chunk == ids[4 * i : 4 * i + 4]


def test_passages_of_a_batch_are_disjoint_pairs_of_one_length():
    settings = config()
    sizes = [30, 9, 12, 40, 4, 25]
    batches = PassageBatches(sizes, settings)
    lengths = set()
    for index in range(60):
        passages = batches[index]
        assert len(passages) >= 4
        assert len({p.count for p in passages}) == 1
        lengths.add(passages[0].count)
        for first, second in zip(passages[::2], passages[1::2], strict=True):
            assert first.document == second.document
            assert 0 <= first.first <= first.first + first.count <= second.first
            assert second.first + second.count <= sizes[second.document]
        assert len({p.document for p in passages}) == len(passages) // 2
        assert batches[index] == PassageBatches(sizes, settings)[index]
    assert lengths == {2, 3, 4}
    with pytest.raises(ValueError, match="Too few long texts"):
        PassageBatches([3, 30], settings)
    with pytest.raises(ValueError, match="chunk_tokens < min_length"):
        config(min_length=10)


@pytest.fixture
def make_run(tiny_folder, data, tmp_path, fresh_accelerator):
    """A new run, or with the same folder the continuation of one, as a new process would make it."""

    def make(name="run", **changes):
        fresh_accelerator()
        run = LongTextTrainer(
            student=LAMModel.from_pretrained(tiny_folder),
            tokenizer=AutoTokenizer.from_pretrained(tiny_folder),
            config=config(**changes),
            folder=tmp_path / name,
            dev_file=data / "dev.jsonl",
            data=data,
            cache_folder=tmp_path / "cache",
        )
        run.prepare()
        return run

    return make


def test_a_passage_is_embedded_as_the_encoder_does_and_a_reset_forgets(make_run, tiny_folder):
    run = make_run()
    run.model.eval()
    passage = run.batches[0][0]
    row = run._ids(passage, run.tables)
    with torch.no_grad():
        whole, second = run._embed([row, row[:9]])
        want = run.model(torch.from_numpy(row)[None]).last_hidden_state.mean(1)[0]
        assert_close_rms("passage", whole, torch.nn.functional.normalize(want, dim=-1), 1e-5)
        forgotten, same = run._embed([row, row[:9]], resets=[10])
        assert_close_rms("the other text", same, second, 1e-5)
        assert (forgotten - whole).abs().max() > 1e-4
        places = torch.arange(len(row))
        parts = [
            run.model(torch.from_numpy(row)[None, a:b], position_ids=places[None, a:b])
            for a, b in ((0, 10), (10, None))
        ]
        want = torch.cat([part.last_hidden_state[0] for part in parts]).mean(0)
    assert_close_rms("reset", forgotten, torch.nn.functional.normalize(want, dim=-1), 1e-5)
    export_model(tiny_folder, tiny_folder, torch.float32)
    chunks = run.batches[0][0].chunks
    want = LAMEncoder(tiny_folder).encode([run.tables[document].text(i) for document, i in chunks])
    assert np.allclose(run.cache.rows(np.array([run.places[c] for c in chunks])), want, atol=2e-3)


def test_late_chunks_are_means_over_their_own_tokens_and_are_learnt(make_run):
    run = make_run(steps=30, decay_steps=10, learning_rate=3e-3, chunk_weight=0.0, contrastive_weight=0.0,
                   embedding_weight=0.0, late_weight=10.0, reset_share=0.0)  # fmt: skip
    run.model.eval()
    passages = run.batches[0][:2]
    size = run.config.chunk_tokens - 2
    rows = [run._ids(passage, run.tables) for passage in passages]
    with torch.no_grad():
        states, ends = run._read(rows)
        late = run._late_chunks(states, ends[:-1], passages[0].count)
        alone = run.model(torch.from_numpy(rows[1])[None]).last_hidden_state[0]
    want = alone[1 : 1 + size].mean(0), alone[-1 - size : -1].mean(0)
    assert late.shape == (2, passages[0].count, alone.shape[1])
    for got, mean in zip((late[1, 0], late[1, -1]), want, strict=True):
        assert_close_rms("late chunk", got, torch.nn.functional.normalize(mean, dim=-1), 1e-5)
    losses = []
    run.run(evaluate_every=30, on_step=lambda progress: losses.append(progress.losses["late"]))
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:6])


def test_a_run_learns_and_only_the_last_position_moves(make_run):
    run = make_run(steps=30, decay_steps=10, learning_rate=3e-3, chunk_weight=0.0, contrastive_weight=0.0)
    before = {name: x.clone() for name, x in run.model.state_dict().items()}
    losses = []
    run.run(evaluate_every=15, on_step=lambda progress: losses.append(progress.losses["embedding"]))
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:6])
    moved = {name for name, x in run.model.state_dict().items() if not torch.equal(x, before[name])}
    table = "embeddings.position_embeddings.weight"
    assert moved == {name for name in before if ".memory." in name} | {table}
    rows = (run.model.state_dict()[table] != before[table]).any(1).nonzero().flatten()
    assert rows.tolist() == [POSITIONS - 1]
    scores = [record for record in read_log(run.folder) if "dev_same_document" in record]
    assert [record["step"] for record in scores] == [15, 30]
    means = [(record["dev_pearson"] + record["dev_same_document"]) / 2 for record in scores]
    assert run.progress.best_score == max(means)
    assert (run.folder / "best" / "config.json").exists()


def test_a_resumed_long_text_run_equals_an_uninterrupted_one(make_run):
    whole, first = make_run("whole"), make_run("parts")
    whole.run(evaluate_every=3)
    first.run(evaluate_every=3, stop_after=2)
    second = make_run("parts")
    assert second.run(evaluate_every=3).step == 6
    want = whole.model.state_dict()
    assert not [name for name, x in second.model.state_dict().items() if not torch.equal(x, want[name])]
    assert second.progress.best_score == whole.progress.best_score
    with pytest.raises(ValueError, match=r"'reset_share': \(0\.2, 0\.5\)"):
        make_run("parts", reset_share=0.5).run()


def test_the_nearest_of_the_same_source():
    embeddings = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [1, 0.05]])
    assert nearest_of_same_source(embeddings, np.array([0, 0, 1, 1, 1])) == 0.4
    assert nearest_of_same_source(embeddings, np.array([0, 0, 1, 1, 0])) == 1.0


def test_several_processes_are_refused_before_anything_is_read(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(longtext, "process_state", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(ValueError, match="one process, got 2: start it without torchrun"):
        make_run()
    assert not (tmp_path / "run").exists()
