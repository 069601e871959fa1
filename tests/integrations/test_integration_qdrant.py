"""Qdrant in local mode."""

from handbook import read_passages, read_questions

from ..helpers import require

require("qdrant_client", "qdrant")
import qdrant_local


def test_it_finds_in_the_handbook_what_the_model_finds(encoder, ranked_passages):
    client = qdrant_local.build_index(encoder, read_passages())
    answers = [qdrant_local.search(client, encoder, q["question"]) for q in read_questions()]
    client.close()
    assert answers == ranked_passages


def test_a_collection_in_a_folder_is_found_again(encoder, tmp_path):
    from qdrant_client import QdrantClient

    texts = read_passages()[:10]
    client = qdrant_local.build_index(encoder, texts, str(tmp_path))
    want = qdrant_local.search(client, encoder, "When is the library open?")
    client.close()
    client = QdrantClient(path=str(tmp_path))
    assert qdrant_local.search(client, encoder, "When is the library open?") == want
    client.close()


def test_documented_code(run_documented):
    assert "closed on Mondays" in run_documented("Qdrant")
