"""Small made-up data sets in the layout that the evaluation suite reads, and small models to measure on them."""

import io
import json
import tarfile

import numpy as np
import pytest

from ..conftest import WORDS


def sentence(g, low=4, high=12) -> str:
    return " ".join(g.choice(WORDS, size=g.integers(low, high)))


def write_lines(path, records) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_pairs(path, count=40, seed=0) -> None:
    """Pairs whose score is the share of words that they have in common."""
    g, records = np.random.default_rng(seed), []
    for _ in range(count):
        first = sentence(g, 6, 12).split()
        kept = g.integers(0, len(first) + 1)
        second = first[:kept] + sentence(g, 3, 5).split()
        records.append({"sentence1": " ".join(first), "sentence2": " ".join(second), "score": 5.0 * kept / len(first)})
    write_lines(path, records)


def babi_text(questions: int, seed: int) -> str:
    g, lines = np.random.default_rng(seed), []
    for _ in range(questions):
        place = g.choice(["house", "street", "river"])
        lines += [f"1 the man sings in the {place}.", f"2 where is the man?\t{place}\t1"]
    return "\n".join(lines) + "\n"


def write_babi(path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:xz") as archive:
        for split, seed in (("train", 1), ("test", 2)):
            content = babi_text(40, seed).encode()
            member = tarfile.TarInfo(f"tasks_1-20_v1-2/en/qa1_single-supporting-fact_{split}.txt")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_conversations(folder) -> None:
    """Two conversations as BEAM has them, one as LoCoMo has it; a question repeats words of what answers it."""
    g = np.random.default_rng(7)
    records = []
    for _ in range(2):
        texts = [f"{sentence(g, 5, 9)} on {['Monday', 'Friday'][i % 2]} at {i}" for i in range(10)]
        messages = [
            {
                "id": str(i),
                "role": ("user", "assistant")[i % 2],
                "time_anchor": ["March-15-2024", None, "April-05-2024"][i // 4],
                "content": text,
            }
            for i, text in enumerate(texts)
        ]
        asked = {
            "plain": [{"question": f"who {texts[i]}?", "source_chat_ids": [i]} for i in (2, 5)],
            "several": [{"question": f"and {texts[4]}?", "source_chat_ids": {"first": [4], "second": ["6"]}}],
        }
        records.append({"messages": messages, "probing_questions": asked})
    write_lines(folder / "beam.jsonl", records)
    said = {"speaker_a": "Ada", "speaker_b": "Ben"}
    for session in (1, 2):
        said[f"session_{session}_date_time"] = "1:00 pm on 8 May, 2023"
        said[f"session_{session}"] = [
            {"speaker": ("Ada", "Ben")[i % 2], "dia_id": f"D{session}:{i + 1}", "text": sentence(g, 5, 9)}
            for i in range(4)
        ]
    questions = [
        {"question": f"who {said['session_2'][2]['text']}?", "evidence": ["D2:3"], "category": 4},
        {"question": "where is the dog?", "evidence": ["D1:1; D1:2"], "category": 1},
    ]
    write_lines(folder / "locomo.jsonl", [{"sample_id": "conv-1", "conversation": said, "qa": questions}])


def write_data(folder) -> None:
    """All data sets of the suite, each a few kilobytes."""
    g = np.random.default_rng(5)
    write_pairs(folder / "sts/stsb_dev.jsonl", seed=1)
    write_pairs(folder / "sts/stsb_test.jsonl", seed=2)
    books = [
        {"_id": f"book {i}", "title": f"book {i}", "text": " ".join(g.choice(WORDS[i::2], size=8_000))}
        for i in (0, 1, 2, 3, 4, 5)
    ]
    write_lines(folder / "longdoc/books.jsonl", books)
    documents = []
    for i in range(4):
        questions = [f"what does the {WORDS[i + j]} do in the {WORDS[i + 9 + j]}?" for j in range(3)]
        text = " ".join(g.choice(WORDS, size=120))
        documents.append({"task": "quality", "input": text, "instructions": questions})
    write_lines(folder / "longdoc/leval.jsonl", documents)
    write_babi(folder / "longdoc/babi_tasks_1-20_v1-2_en.tar.xz")
    write_conversations(folder / "memory")


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    """All data sets of the suite; whoever changes them copies the folder."""
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture(scope="session")
def lam_folder(tiny_model, tokenizer, tmp_path_factory):
    """A folder with the tiny model, named tiny-lam."""
    folder = tmp_path_factory.mktemp("lam") / "tiny-lam"
    tiny_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def measured_model(lam_folder):
    """The tiny model as the suite measures it."""
    from lam_transformers.evaluation.models import load_encoder

    return load_encoder(lam_folder)


@pytest.fixture(scope="session")
def two_way_folder(make_model, tokenizer, tmp_path_factory):
    """A folder with a model that reads two ways in chunks of 8 tokens."""
    folder = tmp_path_factory.mktemp("lam") / "two-way-lam"
    make_model(two_way_chunk=8).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def measured_two_way(two_way_folder):
    """The model that reads two ways as the suite measures it."""
    from lam_transformers.evaluation.models import load_encoder

    return load_encoder(two_way_folder)
