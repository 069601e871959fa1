"""The model type of the published LAM checkpoints."""
