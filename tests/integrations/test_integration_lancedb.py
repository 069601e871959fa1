"""LanceDB: a table in a folder."""

from handbook import read_passages, read_questions, recall

from ..helpers import require

require("lancedb", "lancedb")
import lancedb_local


def test_handbook(encoder, tmp_path):
    table, questions = lancedb_local.build_index(encoder, read_passages(), str(tmp_path)), read_questions()
    found = [lancedb_local.search(table, encoder, q["question"]) for q in questions]
    assert all(len(texts) == 5 for texts in found)
    assert recall(questions, found) >= 0.8


def test_a_table_in_a_folder_is_found_again(encoder, tmp_path):
    import lancedb

    table = lancedb_local.build_index(encoder, read_passages()[:10], str(tmp_path))
    want = lancedb_local.search(table, encoder, "When is the library open?")
    again = lancedb.connect(str(tmp_path)).open_table("handbook")
    assert lancedb_local.search(again, encoder, "When is the library open?") == want


def test_documented_code(run_documented):
    assert "closed on Mondays" in run_documented("LanceDB")
