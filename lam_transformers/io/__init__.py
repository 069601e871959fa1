"""Files in and out: texts, results, models by their names, and lines to the terminal."""
