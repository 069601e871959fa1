"""Measuring LAM and its peers in one harness."""
