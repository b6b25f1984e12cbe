"""Processes that work for another process."""
