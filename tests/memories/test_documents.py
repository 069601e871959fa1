"""Documents are read whole, in one pass, recognised, and kept in versions."""

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lam_transformers.encoding import LAMEncoder, late_chunks
from lam_transformers.memories import Memory, UnknownMemory, reading
from lam_transformers.memories.paragraphs import LONGEST_PARAGRAPH, paragraphs

DOCUMENT = "# The river\n\nThe water is green. A man sings.\n\nThe street is red.\n\n" + "\n\n".join(
    f"The {animal} {verb} in the old house {i}."
    for i in range(30)
    for animal, verb in (("dog", "runs"), ("cat", "eats"))
)


ROOT = Path(__file__).parents[2]
# Prints by how many bytes the most memory in use has grown with a document ten times as long.
MEASURE = """
import resource, sys
from lam_transformers.memories import Memory
def text(words):
    return "\\n\\n".join(f"The dog {i} runs in the old house and the cat eats it." for i in range(words // 13))
with Memory(sys.argv[1], model=sys.argv[2]) as memory:
    memory.add_document(text(20_000), title="short")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory.add_document(text(200_000), title="long")
    print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before), memory.stats()["paragraphs"])
"""
# Reads a document of more than a million tokens and prints by how many bytes the most memory in use has grown, from a
# short one on.
READ_A_MILLION = """
import resource, sys
from lam_transformers.memories import Memory
from tests.memories.test_documents import million_tokens
with Memory(sys.argv[1], model=sys.argv[2]) as memory:
    memory.add_document("The river is red. " * 3_000, title="short")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory.add_document(million_tokens(), title="long")
    print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def million_tokens():
    """10,500 paragraphs of about 100 tokens, each with a name of its own."""
    sentences = "The dog runs in the old house. A woman reads a book. The cat eats and the child plays quickly. " * 4
    return "\n\n".join(f"Part{i}x begins. {sentences}" for i in range(10_500))


@pytest.fixture
def small_steps(monkeypatch):
    monkeypatch.setattr(reading, "SEGMENT", 32)
    monkeypatch.setattr(reading, "STEP", 2)


def test_a_document_has_a_vector_a_paragraph_and_one_of_its_own(memory, tiny_encoder, small_steps):
    record = memory.add_document(DOCUMENT, user_id="ada", metadata={"shelf": 3})
    assert (record.kind, record.text, record.version, record.metadata) == ("document", "The river", 1, {"shelf": 3})
    assert memory.document(record.id) == DOCUMENT
    memory.search("river", user_id="ada")
    partition = memory.partitions.get("ada")
    spans = paragraphs(DOCUMENT)
    want = late_chunks(tiny_encoder, DOCUMENT, spans)
    rows = {id: partition.vectors[partition.first[i]] for i, id in enumerate(partition.ids)}
    assert np.abs(rows[record.id] - tiny_encoder.encode(DOCUMENT)).max() <= 1e-6
    for number, chunk in enumerate(want):
        assert np.abs(rows[f"{record.id}-{number}"] - chunk.embedding).max() <= 1e-5
    result = memory.search("green water", user_id="ada", kinds=["paragraph"])[0].memory
    assert DOCUMENT[result.start : result.end] == result.text
    assert result.document_id == record.id
    assert memory.verify() == []


def test_the_same_document_is_recognised_and_a_changed_one_is_its_next_version(memory, clock):
    first = memory.add_document(DOCUMENT, user_id="ada")
    before = memory.stats()
    assert memory.add_document(DOCUMENT, user_id="ada") == first
    assert memory.stats()["versions"] == before["versions"]
    then = clock()
    changed = memory.add_document("# The river\n\nThe water is old.", user_id="ada")
    assert (changed.id, changed.version) == (first.id, 2)
    assert {r.text for r in memory.search("water", user_id="ada", kinds=["paragraph"])} == {
        "# The river\n\nThe water is old."
    }
    old = memory.search("green water", user_id="ada", kinds=["paragraph"], as_of=then)
    assert old[0].text.endswith("The water is green. A man sings.")
    assert [version.version for version in memory.history(first.id)] == [1, 2]
    memory.delete(first.id)
    assert memory.list(user_id="ada") == []
    with pytest.raises(UnknownMemory):
        memory.document(first.id)
    assert memory.stats()["versions"] == 0


def test_an_interrupted_document_goes_on_where_it_was(place, tiny_encoder, small_steps, monkeypatch, tmp_path):
    with Memory(tmp_path / "whole.db", model=tiny_encoder) as whole:
        whole.add_document(DOCUMENT)
        want = [(r.text, r.score) for r in whole.search("the cat eats")]
    steps = []
    real = reading.Reader.read_document

    def stopping(self, text, resume=None):
        steps.append(resume)
        for number, step in enumerate(real(self, text, resume)):
            if len(steps) < 3 and number == 2:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(reading.Reader, "read_document", stopping)
    for _ in range(2):
        with Memory(place, model=tiny_encoder) as memory, pytest.raises(KeyboardInterrupt):
            memory.add_document(DOCUMENT)
    with Memory(place, model=tiny_encoder) as memory:
        assert memory.search("the cat eats") == []  # what is not read to its end does not answer
        assert memory.stats()["unfinished_documents"] == 1
        memory.add_document(DOCUMENT)
        assert steps[0] is None
        assert steps[1] is not None
        assert steps[2] != steps[1]
        got = [(r.text, r.score) for r in memory.search("the cat eats")]
        assert [text for text, _ in got] == [text for text, _ in want]
        assert [score for _, score in got] == pytest.approx([score for _, score in want], abs=1e-6)
        assert memory.verify() == []


def test_an_unfinished_document_gives_way_to_another_text(place, tiny_encoder, small_steps, monkeypatch):
    real = reading.Reader.read_document

    def stopping(self, text, resume=None):
        yield next(real(self, text, resume))
        raise KeyboardInterrupt

    with Memory(place, model=tiny_encoder) as memory:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(reading.Reader, "read_document", stopping)
            memory.add_document(DOCUMENT)
        record = memory.add_document("# The river\n\nThe water is old.")
        assert record.version == 1
        assert memory.verify() == []
        assert memory.stats()["paragraphs"] == 1


@pytest.mark.slow
def test_a_long_document_is_read_in_constant_memory(place, make_model, tokenizer, tmp_path):
    """The states of its tokens alone would be 200 MB."""
    model = make_model(hidden_size=256, num_attention_heads=8, num_hidden_layers=1, two_way_chunk=64)
    model.save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, place, str(tmp_path / "wide")],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert measured.returncode == 0, measured.stderr
    grown, paragraphs = map(int, measured.stdout.split())
    assert paragraphs == 20_000 // 13 + 200_000 // 13
    assert grown < 80e6


@pytest.mark.slow
def test_a_million_tokens_are_read_through_a_kill_and_found(place, tiny_encoder_folder):
    def read():
        return subprocess.Popen(
            [sys.executable, "-c", READ_A_MILLION, place, str(tiny_encoder_folder)],
            stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def tokens_read():
        with memory.store.read() as transaction:
            rows = transaction.rows("SELECT read_tokens FROM documents WHERE title = 'long'")
        return int(rows[0][0]) if rows else 0

    with Memory(place, model=None) as memory:
        with read() as first:
            while tokens_read() < 300_000:
                assert first.poll() is None
                time.sleep(0.1)
            first.kill()
        assert memory.search("Part1x") == []  # what is not read to its end does not answer
        at_the_kill = tokens_read()
        with read() as second:
            grown = int(second.stdout.read())
        assert second.returncode == 0
        # SQLite may keep 64 MB of pages, and the text of 4 MB is there a few times; the tokens' states would be 145 MB.
        assert grown < 90e6
        (document,) = (record for record in memory.list(kinds=["document"]) if record.text == "long")
        steps = [event["tokens"] for event in memory.events(document.id) if event["kind"] == "document read"]
        assert at_the_kill in steps[:-1]
        assert all(before < after for before, after in itertools.pairwise(steps))  # nothing was read twice
        assert steps[-1] > 1_000_000
        assert memory.verify() == []
    text = million_tokens()
    with Memory(place, model=tiny_encoder_folder) as memory:
        assert memory.document(document.id) == text
        for number in (0, 5_250, 10_499):
            (result,) = memory.search(f"What does Part{number}x say?", kinds=["paragraph"], top_k=1)
            paragraph = result.memory
            assert (paragraph.document_id, paragraph.position) == (document.id, number)
            assert paragraph.text == text[paragraph.start : paragraph.end]
            assert paragraph.text.startswith(f"Part{number}x begins.")
        partition = memory.partitions.get("")
        vector = partition.vectors[partition.first[partition.ids.index(document.id)]]
        assert np.abs(vector - LAMEncoder(tiny_encoder_folder).encode(text)).max() <= 1e-5


def test_files(words_only, tmp_path):
    (tmp_path / "notes.md").write_text("# Notes\n\nThe dog.\n", encoding="utf-8")
    assert words_only.add_document(tmp_path / "notes.md").text == "notes.md"
    # A string is a text, also where it looks like a path: a server's files are not to be had for the asking.
    assert words_only.add_document(str(tmp_path / "notes.md")).text == str(tmp_path / "notes.md")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no text in UTF-8"):
        words_only.add_document(tmp_path / "bad.txt")
    with pytest.raises(OSError, match=r"missing\.md"):
        words_only.add_document(tmp_path / "missing.md")
    with pytest.raises(ValueError, match="empty"):
        words_only.add_document("  \n\n ")


def test_a_pdf(words_only, tmp_path):
    pypdf = pytest.importorskip("pypdf", reason="the memory extra is not installed")
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = pypdf.PdfWriter()
    page = writer.add_blank_page(300, 300)
    font = DictionaryObject(
        {NameObject("/Type"): NameObject("/Font"), NameObject("/Subtype"): NameObject("/Type1"),
         NameObject("/BaseFont"): NameObject("/Helvetica")}
    )  # fmt: skip
    fonts = DictionaryObject({NameObject("/F1"): font})
    page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    content = DecodedStreamObject()
    content.set_data(b"BT /F1 12 Tf 20 200 Td (Whales sing in the deep.) Tj ET")
    page[NameObject("/Contents")] = writer._add_object(content)
    writer.write(tmp_path / "whales.pdf")
    writer = pypdf.PdfWriter()
    writer.add_blank_page(300, 300)
    writer.write(tmp_path / "empty.pdf")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 nonsense")
    words_only.add_document(tmp_path / "whales.pdf")
    assert words_only.search("whales", kinds=["paragraph"])[0].text == "Whales sing in the deep."
    for name in ("empty.pdf", "broken.pdf"):
        with pytest.raises(ValueError, match=name):
            words_only.add_document(tmp_path / name)


@pytest.mark.parametrize(
    "text", ["", "\n\n", "one", "# Head", "# A\n\n# B\n\ntext", "x" * 5000, "Word. " * 900, DOCUMENT]
)
def test_paragraphs_cover_the_text_in_order(text):
    spans = paragraphs(text)
    assert all(0 <= a < b <= len(text) for a, b in spans)
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))
    assert "".join(text[a:b] for a, b in spans).split() == text.split() or "".join(
        "".join(text[a:b] for a, b in spans).split()
    ) == "".join(text.split())
    assert all(b - a <= LONGEST_PARAGRAPH + 200 for a, b in spans)
