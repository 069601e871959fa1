"""The part memory: files of conversations, measures, and a run on small made-up ones."""

import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the evaluate extra is not installed")
pytest.importorskip("sklearn", reason="the evaluate extra is not installed")

from handbook import ROOT

from lam_transformers.evaluation.conversations import read_conversations
from lam_transformers.evaluation.data import Data, MissingData
from lam_transformers.evaluation.memory_pillars import other_detail
from lam_transformers.evaluation.part import Context, Settings
from lam_transformers.evaluation.parts import memory
from lam_transformers.evaluation.parts.memory import DEFAULT, MemorySettings, conversation_files, weaknesses
from lam_transformers.evaluation.remembered import MEASURES, Remembered, first_place, fused, macro_means, measures
from lam_transformers.io.results import read_results
from lam_transformers.memories.reading import Reader

from ..helpers import run_lam
from .conftest import write_lines

PILLARS = [
    "cross timescale",
    "pattern separation",
    "reconsolidation",
    "semantic projection",
    "cognitive realism",
    "salience gating",
]


def read(path, *records):
    write_lines(path, records)
    return list(read_conversations(path))


def test_conversations_as_beam_has_them(tmp_path):
    messages = [
        {"id": "0", "role": "user", "content": "one", "time_anchor": "March-15-2024"},
        {"id": "1", "role": "assistant", "content": " "},
        {"id": 2, "role": "user", "content": "three", "time_anchor": "March-15-2024"},
        {"id": "3", "role": "user", "content": "four", "time_anchor": "April-01-2024"},
        {"id": "4", "role": "assistant", "content": "five"},
    ]
    asked = {
        "b": [
            {"question": "both?", "source_chat_ids": {"first": [0], "second": {"x": ["2"]}}},
            {"question": "nothing?", "source_chat_ids": None},
            {"question": "nowhere?", "source_chat_ids": [99, True]},
            {"question": "unanswerable?"},
        ],
        "a": [{"question": "last?", "source_chat_ids": 4}],
    }
    (one,) = read(tmp_path / "x.jsonl", {"messages": messages, "probing_questions": asked})
    assert one.texts == ["one", "three", "four", "five"]
    assert one.roles == ["user", "user", "user", "assistant"]
    assert one.sessions == [0, 0, 1, 1]
    assert list(one.parts()) == [range(2), range(2, 4)]
    assert [(q.kind, q.text, q.evidence) for q in one.questions] == [("a", "last?", {3}), ("b", "both?", {0, 1})]


def test_conversations_as_locomo_has_them(tmp_path):
    said = {
        "speaker_a": "Ada",
        "session_10": [{"speaker": "Ada", "dia_id": "D10:1", "text": "late"}],
        "session_2_date_time": "1:00 pm on 8 May, 2023",
        "session_2": [
            {"speaker": "Ben", "dia_id": "D2:1", "text": "early", "blip_caption": "a dog"},
            {"speaker": "Ada", "dia_id": "D2:2", "text": ""},
        ],
    }
    asked = [
        {"question": "when?", "evidence": ["D2:1; D10:1"], "category": 2, "answer": "then"},
        {"question": "blank?", "evidence": ["D2:2"], "category": 1},
        {"question": "odd?", "evidence": ["D:2:1", "D10:1"], "category": 9},
        {"question": "none?", "evidence": [], "category": 5},
    ]
    (one,) = read(tmp_path / "x.jsonl", {"conversation": said, "qa": asked})
    assert one.texts == ["early [image: a dog]", "late"]
    assert one.sessions == [2, 10]
    assert [(q.kind, q.evidence) for q in one.questions] == [("temporal", {0, 1}), ("9", {1})]


def test_the_projects_own_conversations():
    conversations = list(read_conversations(ROOT / "examples/data/conversations.txt"))
    assert len(conversations) == 3
    assert sum(len(one.questions) for one in conversations) == 48
    for one in conversations:
        assert len(set(one.sessions)) > 1
        assert all(place < len(one.texts) for question in one.questions for place in question.evidence)


def test_files_of_another_shape_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"x\.jsonl: record 0 has the fields text;"):
        read(tmp_path / "x.jsonl", {"text": "no conversation"})


def test_where_conversations_are_looked_for(tmp_path):
    for folder in (None, tmp_path):
        with pytest.raises(MissingData, match=r"memory/NAME\.jsonl"):
            conversation_files(folder)
    write_lines(tmp_path / "memory/b.jsonl", [])
    write_lines(tmp_path / "memory/notes.md", [])
    write_lines(tmp_path / "memory/c.txt", [])
    assert [path.name for path in conversation_files(tmp_path)] == ["b.jsonl", "c.txt"]


def test_measures_of_a_ranked_list():
    assert measures([3, 1, 2], frozenset({3})) == (1, 1, 1, 1)
    assert measures([0, 1], frozenset({3})) == (0, 0, 0, 0)
    assert measures([], frozenset({3})) == (0, 0, 0, 0)
    five, ten, hit, gain = measures([9, 8, 7, 6, 5, 4, 0, 1], frozenset({0, 1, 2, 9}))
    assert (five, ten, hit) == (0.25, 0.75, 1)
    ideal = sum(1 / np.log2([2, 3, 4, 5]))
    assert gain == pytest.approx(sum(1 / np.log2([2, 8, 9])) / ideal)
    assert first_place([5, 3, 1], frozenset({1, 3})) == 0.5
    assert first_place([5], frozenset({1})) == 0


def test_fused_scores_are_the_service_s_own_kind():
    assert fused(np.array([0.2, 0.6, 0.4]), np.array([0.0, 1.0, 4.0])).tolist() == pytest.approx([0, 0.7, 0.7])


def test_every_kind_of_question_counts_the_same():
    table = np.zeros((5, len(MEASURES)))
    table[0] = 1
    means = macro_means({"way": table, "half": table / 2}, ["rare", "often", "often", "often", "often"], 50)
    mean, drawn = means["way"]["recall@10"]
    assert mean == 0.5
    assert drawn.tolist() == [0.5] * 50
    assert np.array_equal(means["half"]["hit@10"][1] * 2, means["way"]["hit@10"][1])


def test_details_that_are_changed():
    assert other_detail("the 3 dogs") == "the 10 dogs"
    assert other_detail("see you on Sunday or Monday") == "see you on Wednesday or Monday"
    assert other_detail("in October") == "in January"
    assert other_detail("the dog") is None


@pytest.fixture(scope="module")
def numbers(measured_model, data_folder):
    settings = Settings(resamples=40, parts=(MemorySettings(memory_pillars=2, memory_distractors=3, memory_details=5),))
    context = Context(measured_model, [], Data(data_folder), settings)
    measured = memory.run(context)
    assert context.missing == []
    return json.loads(json.dumps(measured))


def test_every_way_is_measured_on_every_file(numbers, measured_model):
    assert set(numbers["sets"]) == {"beam", "locomo"}
    beam = numbers["sets"]["beam"]
    assert (beam["conversations"], beam["turns"], beam["questions"]) == (2, 20, 6)
    ours = measured_model.name
    assert list(beam["ways"]) == [
        DEFAULT,
        "BM25",
        f"{ours}, isolated",
        f"{ours}, isolated + BM25",
        f"{ours}, carried",
        f"{ours}, carried + BM25",
    ]
    for ways in (beam["ways"], beam["ablations"], *(kind["ways"] for kind in beam["by_kind"].values())):
        for row in ways.values():
            for measure in MEASURES:
                low, high = row[measure]["interval"]
                assert 0 <= low <= row[measure]["mean"] <= high <= 1 + 1e-9
    assert set(beam["by_kind"]) == {"plain", "several"}
    # Questions repeat their answers' words, so words alone find them: nothing was mixed up on the way.
    assert beam["ways"]["BM25"]["recall@5"]["mean"] > 0.7
    assert beam["by_kind"]["plain"]["ways"]["BM25"]["recall@5"]["mean"] == 1
    assert set(beam["ablations"]) == {*memory.ABLATIONS, memory.STRENGTHS_ON}
    off = beam["ablations"]["BM25 off"]
    gap = off["default_less"]["recall@5"]["difference"]
    assert gap == pytest.approx(beam["ways"][DEFAULT]["recall@5"]["mean"] - off["recall@5"]["mean"])


def test_the_pillars_are_judged(numbers):
    assert [row["pillar"] for row in numbers["pillars"]] == PILLARS
    for row in numbers["pillars"]:
        assert 0 <= row["p"] <= 1
        assert row["passes"] == (row["p"] < 0.05)
    separation = numbers["pillars"][1]["measured"]
    assert separation["pairs"] == 10
    assert separation["shown_as_one_though_different"] == 0
    assert separation["copies_shown_as_one"] > 0
    assert numbers["pillars"][2]["measured"]["questions"] == 5
    assert numbers["settings"] == dataclasses.asdict(
        MemorySettings(memory_pillars=2, memory_distractors=3, memory_details=5)
    )


def test_the_signals_are_the_service_s(measured_model, data_folder, tmp_path):
    """BM25 and cosines of all turns, those of `encode` for turns alone."""
    conversation = next(read_conversations(data_folder / "memory/beam.jsonl"))
    remembered = Remembered(conversation, Reader(measured_model.model), tmp_path)
    question = conversation.questions[0].text
    with remembered.open() as opened:
        signals = remembered.signals(opened, question)
        assert opened.stats()["memories"] == 10
    want = measured_model.encode(conversation.texts) @ measured_model.encode([question])[0]
    assert np.abs(signals["cosine alone"] - want).max() < 1e-5
    assert np.abs(signals["cosine carried"] - want).max() > 1e-4
    assert signals["bm25"].argmax() in conversation.questions[0].evidence
    assert np.isfinite(remembered.novelty).all()
    assert remembered.novelty[0] == 1
    # Looking changes nothing: no strength has moved.
    with remembered.open() as opened:
        assert all(event["kind"] != "recalled" for event in opened.events())


def test_weaknesses_follow_from_the_numbers(numbers):
    changed = json.loads(json.dumps(numbers))
    rows = changed["sets"]["beam"]["differences"]
    for row in rows.values():
        row["recall@10"] = {"difference": 0.1, "interval": [0.05, 0.2]}
    rows["BM25"]["recall@10"] = {"difference": -0.1, "interval": [-0.2, -0.05]}
    for row in changed["pillars"]:
        row["passes"] = row["pillar"] != "reconsolidation"
    changed["pillars"][1]["measured"]["shown_as_one_though_different"] = 0.25
    del changed["sets"]["locomo"]
    lines = weaknesses({"memory": {"numbers": changed, "model": {"name": "lam"}}})
    assert "The memory's default ranking is behind BM25 on beam: R@10 -0.100 [-0.200, -0.050]." in lines
    assert not any("isolated" in line for line in lines)
    assert "The memory shows 25% of the memories that differ in one detail as one result." in lines
    assert [line for line in lines if "pillar" in line] == [
        f"The memory fails the pillar reconsolidation (p = {changed['pillars'][2]['p']:.2g})."
    ]


def test_the_command_line_reads_fewer_conversations(lam_folder, tiny_bert, data_folder, tmp_path):
    run_lam(
        *("evaluate", lam_folder, "--baseline", tiny_bert, "--data", data_folder, "--out", tmp_path, "--quick"),
        *("--only", "memory", "--max-conversations", 1),
    )
    record = read_results(tmp_path)["memory"]
    assert record["numbers"]["sets"]["beam"]["conversations"] == 1
    assert record["numbers"]["settings"]["memory_pillars"] == 1
    assert any("tiny-bert" in way or "bert" in way for way in record["numbers"]["sets"]["beam"]["ways"])
    report = (tmp_path / "EVALUATION_REPORT.md").read_text()
    assert "## Memory that lasts" in report
    assert "figures/memory.png" in report


def test_without_conversations_the_part_says_so(lam_folder, tiny_bert, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    output = run_lam(
        *("evaluate", lam_folder, "--baseline", tiny_bert, "--data", data, "--out", tmp_path / "out"),
        *("--only", "memory"),
    )
    assert "Not measured: memory: conversations with questions is missing." in output
