"""LanceDB: a table in a folder."""

from handbook import read_passages, read_questions

from ..helpers import require

require("lancedb", "lancedb")
import lancedb_local


def test_it_finds_in_the_handbook_what_the_model_finds(encoder, ranked_passages, tmp_path):
    table = lancedb_local.build_index(encoder, read_passages(), str(tmp_path))
    answers = [lancedb_local.search(table, encoder, q["question"]) for q in read_questions()]
    assert answers == ranked_passages


def test_a_table_in_a_folder_is_found_again(encoder, tmp_path):
    import lancedb

    table = lancedb_local.build_index(encoder, read_passages()[:10], str(tmp_path))
    want = lancedb_local.search(table, encoder, "When is the library open?")
    again = lancedb.connect(str(tmp_path)).open_table("handbook")
    assert lancedb_local.search(again, encoder, "When is the library open?") == want


def test_documented_code(run_documented):
    assert "closed on Mondays" in run_documented("LanceDB")
