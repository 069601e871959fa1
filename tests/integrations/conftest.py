"""What the tests of other frameworks share.

They ask whether a framework finds what the model itself finds. How good that is depends on the weights, and is measured
by the evaluation (docs/EVALUATION.md).
"""

import pytest
from handbook import read_passages, read_questions


@pytest.fixture(scope="session")
def rank(encoder):
    """For each question of the handbook, the five texts whose embeddings [texts, D] are nearest to it."""
    questions = encoder.encode_query([question["question"] for question in read_questions()])

    def ranked(texts, embeddings):
        nearest = encoder.similarity(questions, embeddings).topk(min(5, len(texts))).indices.tolist()
        return [[texts[i] for i in row] for row in nearest]

    return ranked


@pytest.fixture(scope="session")
def ranked_passages(encoder, rank):
    """For each question of the handbook, the five passages that the model itself ranks first."""
    passages = read_passages()
    return rank(passages, encoder.encode_document(passages))
