"""Qdrant in local mode."""

from handbook import read_passages, read_questions, recall

from ..helpers import require

require("qdrant_client", "qdrant")
import qdrant_local


def test_handbook(encoder):
    client, questions = qdrant_local.build_index(encoder, read_passages()), read_questions()
    found = [qdrant_local.search(client, encoder, q["question"]) for q in questions]
    client.close()
    assert all(len(texts) == 5 for texts in found)
    assert recall(questions, found) >= 0.8


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
