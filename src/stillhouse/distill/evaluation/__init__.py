"""Evaluation of students against their teacher: image quality, prompt alignment, diversity and latency."""
