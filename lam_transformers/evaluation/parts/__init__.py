"""The parts of the evaluation, one file each."""
