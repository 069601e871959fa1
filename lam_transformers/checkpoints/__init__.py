"""Checkpoints in, a LAM folder out."""
