"""The model: its files are copied byte for byte into every checkpoint, so they are flat and stand alone."""
