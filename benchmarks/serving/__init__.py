"""Comparison of image servers under the same load, and the overhead of serving."""
