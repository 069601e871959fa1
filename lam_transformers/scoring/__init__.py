"""Scores of embeddings: similarity, retrieval, and the statistics of both."""
