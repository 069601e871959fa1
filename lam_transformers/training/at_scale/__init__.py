"""Training LAM on one GPU in minutes: texts, teachers, comparison of variants, the mixed run (docs/TRAINING.md).

Commands: ``python -m lam_transformers.training.at_scale.pool``, ``.teachers``, ``.compare`` and ``.run``.
"""
