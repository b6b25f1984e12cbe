"""Measurement of a candidate (backend, precision, options of a network) in a process of its own, next to a baseline."""
