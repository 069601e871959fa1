"""Training at scale, on a made-up data folder and a CPU: pool, teachers, steps, a whole run, the kernels."""

import gzip
import json
import os
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, MPNetConfig, MPNetModel

from lam_transformers import LAMModel
from lam_transformers.encoding.encoder import LAMEncoder
from lam_transformers.evaluation.research.ablation import ABLATIONS
from lam_transformers.training.at_scale import compare
from lam_transformers.training.at_scale import pool as at_scale_pool
from lam_transformers.training.at_scale import run as at_scale_run
from lam_transformers.training.at_scale import teachers as at_scale_teachers
from lam_transformers.training.at_scale.compare import ARMS, CompareSettings, Comparison
from lam_transformers.training.at_scale.cross_encoder import CrossEncoderSettings
from lam_transformers.training.at_scale.memory_rule import memory_rule, one_way_rule, two_way_rule
from lam_transformers.training.at_scale.pool import PoolSettings, build_pool, letters_and_digits
from lam_transformers.training.at_scale.pool_teacher import vocabulary_map
from lam_transformers.training.at_scale.run import MixedRun
from lam_transformers.training.at_scale.settings import RunSettings, next_run
from lam_transformers.training.at_scale.student import Student
from lam_transformers.training.at_scale.teachers import write_teachers
from lam_transformers.training.at_scale.texts import Pool, say

from ..helpers import assert_close_rms, random_ids
from .conftest import sentence, write_records

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "initializer_range": 0.1,
    "max_position_embeddings": 160,
}
MPNET_NAMES = {"[PAD]": "<pad>", "[CLS]": "<s>", "[SEP]": "</s>", "[MASK]": "<mask>"}
EVALUATION_SENTENCES = ("The young cat sleeps on the red book.", "A man sings in the green house.")
SETTINGS = RunSettings(
    steps=8,
    budget=2048,
    queries=16,
    warmup_steps=2,
    marks=(0.5,),
    chunk=8,
    long_lengths=(60, 120),
    long_shares=(0.5, 0.5),
    long_budget=480,
    chunk_tokens=30,
    short_dimensions=16,
)


class Writer:
    """Sentences of the toy vocabulary, different ones each time, and files of them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.random = random.Random(0)

    def sentence(self, words: int = 10) -> str:
        return sentence(self.random, words).capitalize() + "."

    def text(self, sentences: int) -> str:
        return " ".join(self.sentence() for _ in range(sentences))

    def write(self, name: str, rows: list[dict]) -> None:
        write_records(self.folder / name, rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data folder with every file that the pool reads."""
    folder = tmp_path_factory.mktemp("data")
    w = Writer(folder)
    sentence = w.sentence
    text = w.text
    for name in ("stsb_dev", "stsb_test", "sickr_dev", "stsb_train"):
        rows = [{"sentence1": sentence(), "sentence2": sentence(), "score": i % 6} for i in range(40)]
        if name == "stsb_dev":
            rows.append(dict(zip(("sentence1", "sentence2"), EVALUATION_SENTENCES, strict=True)) | {"score": 1})
        w.write(f"sts/{name}.jsonl.gz", rows)
    for name in ("cranfield", "cisi"):
        w.write(f"retrieval/{name}/queries.jsonl.gz", [{"_id": str(i), "text": sentence()} for i in range(4)])
        w.write(f"retrieval/{name}/corpus.jsonl.gz", [{"_id": str(i), "text": text(2)} for i in range(12)])
        lines = ["query-id\tcorpus-id\tscore", *(f"{i}\t{2 * i}\t1" for i in range(4))]
        (folder / f"retrieval/{name}/qrels_test.tsv").write_text("\n".join(lines))
    titles = [{"title": sentence(), "abstract": text(14)} for _ in range(110)]
    w.write("pairs/arxiv_title_abstract.jsonl.gz", titles)
    answers = [{"question": sentence(), "answer": text(4) if i % 4 else None} for i in range(40)]
    w.write("pairs/medquad.jsonl.gz", answers)
    papers = [{"title": sentence(), "tldr": [sentence()], "abstract": [sentence(), sentence()]} for _ in range(15)]
    w.write("pairs/scitldr.jsonl.gz", papers)
    questions = [{"question": sentence(), "sentence": sentence(), "label": 1, "answer": "dog"} for _ in range(10)]
    for name in ("squad_sentence_question_lower", "trecqa_wang", "opentriviaqa"):
        w.write(f"pairs/{name}.jsonl.gz", questions)
    same = [{"sentence1": sentence(), "sentence2": sentence(), "label": 1} for _ in range(10)]
    for name in ("altlex_wiki_simplewiki", "mrpc"):
        w.write(f"pairs/{name}.jsonl.gz", same)
    w.write("pairs/wikisplit.jsonl.gz", [{"complex": sentence(20), "simple": [sentence(), sentence()]}] * 5)
    w.write(
        "pairs/simplification_asset_turk.jsonl.gz",
        [{"original": sentence(), "simplifications": [sentence(), sentence(), sentence()]} for _ in range(5)],
    )
    labels = ("entailment", "neutral", "contradiction", "ordinal_3", "unknown label")
    w.write(
        "nli/nli_pairs.jsonl.gz",
        [{"premise": sentence(), "hypothesis": sentence(6), "label": labels[i % 5]} for i in range(40)],
    )
    w.write(
        "nli/nli_triplets.jsonl.gz",
        [{"anchor": sentence(), "positive": sentence(), "negative": sentence()} for _ in range(10)],
    )
    w.write("text/book_passages.jsonl.gz", [{"text": text(5)} for _ in range(20)])
    books = [{"_id": f"book {i}", "text": f"Book {i}. " + text(130)} for i in range(4)]
    w.write("longdoc/books.jsonl.xz", books)
    w.write("longdoc/paul_graham_essays.jsonl.gz", [{"text": text(30)} for _ in range(3)])
    names = (
        "tatoeba_en", "multi30k_captions", "oewn_definitions_examples", "queries_questions", "intents_tech",
        "dstc8_sgd_utterances", "social_reddit_twitter", "corpora_nltk_mixed", "news_reuters_bbc", "wiki_textbooks",
        "book_sentences",
    )  # fmt: skip
    for name in names:
        rows = [{"text": sentence(), "source": "webqa"} for _ in range(40)]
        rows += [{"text": one, "source": "webqa"} for one in EVALUATION_SENTENCES]
        rows += [{"text": "Benchmark " + sentence(), "source": "msmarco_query"}]
        w.write(f"text/{name}.jsonl.gz", rows)
    probes = {"recall": [{"question": sentence(), "source_chat_ids": [1, {"more": "2"}]}]}
    talk = {"messages": [{"id": i, "content": sentence()} for i in range(12)], "probing_questions": probes}
    w.write("memory/beam_100K.jsonl.gz", [talk, talk])
    return folder


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory) -> str:
    """A small BERT that reads abstracts."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("base")
    BertModel(BertConfig(vocab_size=len(tokenizer), **SIZES), add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def other_tokenizer(tokenizer):
    """The toy tokenizer's word pieces with MPNet's special tokens and other numbers; "river" is missing."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    pieces = [MPNET_NAMES.get(piece, piece) for piece in tokenizer.get_vocab() if piece != "river"]
    first = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    order = first + sorted(set(pieces) - set(first))
    toy = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(order)}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(
        tokenizer_object=toy,
        unk_token="[UNK]",
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
    )


@pytest.fixture(scope="module")
def large(other_tokenizer, tmp_path_factory) -> str:
    """A small MPNet."""
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("large")
    config = MPNetConfig(vocab_size=len(other_tokenizer), **SIZES)
    MPNetModel(config, add_pooling_layer=False).save_pretrained(folder)
    other_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pool(data, base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    settings = PoolSettings(max_tokens=126, dev_titles=15, dev_questions=5, dev_summaries=5, dev_tokens=140)
    build_pool(data, folder, base, settings)
    return folder


@pytest.fixture(scope="module")
def teachers(pool, base, large, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teachers")
    settings = CrossEncoderSettings(
        nli_pairs=32, nli_rows=16, stsb_rows=16, stsb_epochs=1, near_pairs=90, random_pairs=20
    )
    write_teachers(pool, folder, base, large, settings, torch.device("cpu"))
    return folder


@pytest.fixture
def run(pool, teachers, base, tmp_path):
    return MixedRun(SETTINGS, pool, teachers, tmp_path / "run", base)


def test_the_pool_keeps_evaluation_sentences_out(pool, data, tokenizer):
    read = Pool(pool, torch.device("cpu"))
    assert len(read) > 300
    texts = read.texts
    decoded = {
        letters_and_digits(tokenizer.decode(texts.flat[start : start + length], skip_special_tokens=True))
        for start, length in zip(texts.offsets.tolist(), texts.cpu_lengths.tolist(), strict=True)
    }
    assert not decoded & {letters_and_digits(sentence) for sentence in EVALUATION_SENTENCES}
    assert not any(text.startswith("benchmark") for text in decoded)
    with gzip.open(data / "text/wiki_textbooks.jsonl.gz", "rt") as file:
        allowed = [json.loads(line)["text"] for line in file][:40]
    assert {letters_and_digits(text) for text in allowed} <= decoded
    assert len(decoded) > 0.9 * len(read)  # the toy tokenizer makes a few alike
    with np.load(pool / "dev.npz") as file:
        assert {"stsb_dev.a.ids", "cisi.qrels", "arxiv.docs.lengths", "beam.qgroup"} <= set(file.files)
        assert file["beam.qrels"].tolist() == [[0, 1, 1], [0, 2, 1], [1, 13, 1], [1, 14, 1]]
    with np.load(pool / "long.npz") as file:
        assert len(file["lengths"]) == 2 + 3  # the first half of the books, and the essays


def test_the_map_of_vocabularies_goes_by_the_word_pieces(tokenizer, other_tokenizer):
    table = vocabulary_map(tokenizer, other_tokenizer)
    pieces = ("dog", "##x", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "river")
    mapped = other_tokenizer.convert_ids_to_tokens([int(table[tokenizer.get_vocab()[piece]]) for piece in pieces])
    assert mapped == ["dog", "##x", "<s>", "</s>", "<pad>", "<mask>", "[UNK]"]


@pytest.mark.parametrize("chunk", [None, 8])
def test_the_student_is_the_model(make_model, chunk):
    model = make_model(two_way_chunk=chunk)
    student = Student(model, "slow" if chunk else "none", chunk or 64)
    lengths = (21, 9, 1)
    ids = random_ids(3, 21, vocab_size=model.config.vocab_size)
    mask = torch.arange(21) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        states = student(ids * mask, mask, all_states=True)
        for row, length in enumerate(lengths):
            want = model(ids[row : row + 1, :length], output_hidden_states=True).hidden_states
            for got, wanted in zip(states, want, strict=True):
                assert_close_rms("state", got[row, :length], wanted[0], 1e-5)


def rule_tensors(time: int, width: int = 32, memories: int = 2) -> list[torch.Tensor]:
    """q, k, v, log_decay, beta of 2 texts and 2 heads."""
    torch.manual_seed(time)
    q, k = torch.nn.functional.normalize(torch.randn(2, 2, time, 2, width), dim=-1)
    v = torch.randn(2, time, 2 * memories, width)
    log_decay = torch.nn.functional.logsigmoid(torch.randn(2, time, 2 * memories) + 2)
    return [q, k, v, log_decay, torch.rand(2, time, 2 * memories)]


def test_variants_of_the_reading_are_made_of_two_rules():
    inputs = rule_tensors(19, width=8)
    one, two = one_way_rule(*inputs), two_way_rule(*inputs, 8)
    assert (one - two).abs().max() > 0.1
    slow = memory_rule(*inputs, 8, "slow")
    assert_close_rms("fast", slow[:, :, ::2], one[:, :, ::2], 1e-5)
    assert_close_rms("slow", slow[:, :, 1::2], two[:, :, 1::2], 1e-5)
    half = memory_rule(*inputs, 8, "half")
    assert_close_rms("first head", half[:, :, :2], one[:, :, :2], 1e-5)
    assert_close_rms("second head", half[:, :, 2:], two[:, :, 2:], 1e-5)
    with pytest.raises(ValueError, match="two_way must be one of none, slow, all, half, got 'fast'"):
        memory_rule(*inputs, 8, "fast")


COMPARE_KERNELS = """
import torch
from lam_transformers.training.at_scale import memory_rule, triton_rule
from tests.helpers import assert_close_rms
from tests.training.test_at_scale import rule_tensors

for time, chunk in ((1, 8), (8, 8), (19, 8)):
    for two_way, additive in (("none", False), ("slow", False), ("all", False), ("slow", True)):
        results = []
        for rule in (triton_rule.memory_rule, memory_rule.memory_rule):
            inputs = [x.clone().requires_grad_() for x in rule_tensors(time)]
            answer = rule(*inputs, chunk, two_way, additive)
            weights = torch.linspace(-1, 1, answer.numel()).view_as(answer)
            (answer * weights).sum().backward()
            results.append((answer, *(x.grad for x in inputs)))
        for name, got, want in zip(("answer", "q", "k", "v", "log_decay", "beta"), *results, strict=True):
            # Backward keeps the states as float16.
            assert_close_rms(f"{name}, {two_way}, {time}", got, want, 1e-5 if name == "answer" else 2e-3)
print("equal")
"""


def test_the_kernels_are_the_rule():
    if find_spec("triton") is None:
        pytest.skip("triton is not installed; its interpreter runs the kernels on a CPU")
    root = Path(__file__).parents[2]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", COMPARE_KERNELS], env=environment, cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "equal"


@pytest.mark.parametrize("share", [0.05, 0.5])
@pytest.mark.parametrize("kind", ["distillation", "retrieval", "similarity", "long"])
def test_every_step_gives_a_finite_loss(run, kind, share):
    for _ in range(3):  # of the choices inside a step
        result = run.steps[kind](share)
        assert torch.isfinite(result.loss)
        assert result.tokens > 0
        assert all(torch.isfinite(part) for part in result.parts.values()), result.parts
        run.model.zero_grad()
        result.loss.backward()
        gradients = [p.grad for p in run.model.layers.parameters()]
        assert all(g is not None and g.isfinite().all() for g in gradients)


def test_a_run_writes_folders_that_load(run):
    scores = run()
    assert run.step == SETTINGS.steps == sum(run.counts.values())
    assert all(np.isfinite(value) for value in scores.values())
    lines = [json.loads(line) for line in (run.out / "dev.jsonl").read_text().splitlines()]
    assert [(line["name"], line["step"]) for line in lines] == [
        ("at0.5", 5), ("at0.5-mean", 5), ("last", 8), ("last-mean", 8)
    ]  # fmt: skip
    assert json.loads((run.out / "run.json").read_text())["settings"]["chunk"] == 8
    for name in ("at0.5", "at0.5-mean", "last", "last-mean"):
        model = LAMModel.from_pretrained(run.out / name)
        assert model.config.two_way_chunk == 8
    embeddings = LAMEncoder(str(run.out / "last")).encode(["the dog sleeps", "the cat"])
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)


def test_a_run_goes_on_from_a_trained_model(run, pool, teachers, base, tmp_path):
    run()
    start = run.out / "last"
    sizes = {name: getattr(SETTINGS, name) for name in ("budget", "queries", "chunk", "long_lengths", "long_shares")}
    settings = next_run(
        start=str(start), steps=2, marks=(), long_budget=480, chunk_tokens=30, short_dimensions=16, **sizes
    )
    going_on = MixedRun(settings, pool, teachers, tmp_path / "next", base)
    before = LAMModel.from_pretrained(start, dtype=torch.float32).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in going_on.model.state_dict().items())
    assert np.isfinite(list(going_on().values())).all()


def test_a_comparison_measures_every_variant(pool, base, tmp_path):
    comparison = Comparison(CompareSettings(steps=2, budget=512), pool, base, torch.device("cpu"), False, tmp_path)
    for arm in ("causal", "ahead1", "half32", "slow64", "without delta rule", "without decay"):
        result = comparison.run(arm)
        assert len(result["hidden_error_by_position"]) == 6
        assert np.isfinite(result["hidden_error_by_position"]).all()
        assert np.isfinite(result["one_minus_cos_abstracts"])
    trained = load_file(tmp_path / "without-decay-0.safetensors")
    rows = ABLATIONS["decay"].rows(comparison._student(ARMS["slow64"]).model.layers[0].memory)
    assert (trained["0.memory.in_proj.weight"][rows] == 0).all()


def test_the_command_of_a_comparison_writes_a_line_for_each_run(pool, base, tmp_path):
    sizes = ["--steps", "1", "--budget", "256", "--device", "cpu"]
    places = ["--data", str(pool), "--out", str(tmp_path / "runs"), "--base", base]
    compare.main([*places, *sizes, "--arms", "causal", "slow64", "--seeds", "3", "4"])
    lines = [json.loads(line) for line in (tmp_path / "runs" / "results.jsonl").read_text().splitlines()]
    assert [(line["arm"], line["seed"]) for line in lines] == [
        ("causal", 3), ("slow64", 3), ("causal", 4), ("slow64", 4)
    ]  # fmt: skip
    assert all(line["steps"] == 1 for line in lines)


def test_the_commands_hand_their_options_on(monkeypatch):
    given = {}

    def recorded(name):
        def record(*arguments):
            given[name] = arguments
            return lambda: None

        return record

    monkeypatch.setattr(at_scale_pool, "build_pool", recorded("pool"))
    monkeypatch.setattr(at_scale_teachers, "write_teachers", recorded("teachers"))
    monkeypatch.setattr(at_scale_run, "MixedRun", recorded("run"))
    at_scale_pool.main(["--data", "texts", "--out", "made", "--seed", "5"])
    assert given["pool"] == (Path("texts"), Path("made"), "all-MiniLM-L6-v2", PoolSettings(seed=5))
    at_scale_teachers.main(["--data", "made", "--out", "said", "--near-pairs", "7", "--device", "cpu"])
    settings = CrossEncoderSettings(near_pairs=7)
    assert given["teachers"][:2] == (Path("made"), Path("said"))
    assert given["teachers"][4:] == (settings, torch.device("cpu"), None)
    places = ["--data", "made", "--teachers", "said", "--out", "runs", "--device", "cpu"]
    at_scale_run.main([*places, "--steps", "9", "--marks", "0.5", "--two-way", "none"])
    assert given["run"][0] == RunSettings(steps=9, marks=(0.5,), two_way="none")
    at_scale_run.main([*places, "--start", "LAM-base-v1"])
    assert given["run"][0] == next_run(start="LAM-base-v1")
    assert given["run"][1:] == (Path("made"), Path("said"), Path("runs"), "all-MiniLM-L6-v2", "cpu", False, None)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="two_way must be 'none' or 'slow', which a LAM can have, got 'half'"):
        RunSettings(two_way="half")
    with pytest.raises(ValueError, match="long_lengths must be at least chunk_tokens"):
        RunSettings(long_lengths=(100,), long_shares=(1.0,))


def test_lines_of_the_log_have_the_time(capsys):
    say("update", 3)
    assert capsys.readouterr().out.rstrip().endswith("] update 3")
