"""Files in and out: texts, results, models by their names, what is shown of a run, and lines to the terminal.

This room imports nothing of the package but `model`.
"""
