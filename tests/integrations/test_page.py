"""docs/INTEGRATIONS.md shows the code of the examples. Needs none of the frameworks."""

import ast
from pathlib import Path

import pytest
from handbook import ROOT, passage_spans, read_passages, read_questions, recall

from ..helpers import documented_code

SECTIONS = {
    "LangChain": "langchain_faiss_chroma.py",
    "LlamaIndex: long nodes": "llama_index_long_nodes.py",
    "LlamaIndex: late chunks": "llama_index_late_chunks.py",
    "Haystack": "haystack_pipeline.py",
    "LangGraph: long-term memory": "langgraph_memory.py",
    "LlamaIndex: memory block": "llama_index_memory.py",
    "Haystack: memories": "haystack_memory.py",
    "Qdrant": "qdrant_local.py",
    "LanceDB": "lancedb_local.py",
}


def imports_and_functions(code: str) -> dict[str, str]:
    parts = [p for p in ast.parse(code).body if isinstance(p, ast.Import | ast.ImportFrom | ast.FunctionDef)]
    return {ast.unparse(part): ast.get_source_segment(code, part) for part in parts}


@pytest.mark.parametrize("section", SECTIONS)
def test_the_page_shows_the_examples_own_functions(section):
    shown = imports_and_functions(documented_code(section))
    real = imports_and_functions((ROOT / "examples" / SECTIONS[section]).read_text(encoding="utf-8"))
    assert shown.items() <= real.items()
    assert any(part.startswith("def ") for part in shown)


def test_every_example_is_in_the_table():
    page = (ROOT / "docs/INTEGRATIONS.md").read_text(encoding="utf-8")
    scripts = {path.name for path in Path(ROOT / "examples").glob("*.py")} - {"handbook.py", "quickstart.py"}
    assert {name for name in scripts if f"`{name}`" in page} == scripts


def test_the_handbook_holds_the_passage_of_every_question():
    passages, questions = read_passages(), read_questions()
    assert (len(passages), len(questions)) == (78, 25)
    assert all(passages.count(q["passage"]) == 1 for q in questions)


def test_passages_are_paragraphs_without_headings():
    text = "# One\n\nfirst line\nsecond line  \n\n## Two\n \n  indented\n\n\nlast\n"
    assert [text[a:b] for a, b in passage_spans(text)] == ["first line\nsecond line", "indented", "last"]
    assert passage_spans("\n \n") == []


def test_recall_counts_the_first_k():
    questions = [{"passage": "a"}, {"passage": "b"}]
    found = [["x", "long a text"], ["b", "x"]]
    assert recall(questions, found, 1) == 0.5
    assert recall(questions, found, 2) == 1.0
