"""Evaluation of one candidate in its own process: build, open, compare with the baseline, time."""
