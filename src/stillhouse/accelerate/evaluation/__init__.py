"""One candidate in a process of its own: built, opened, compared with the baseline, timed."""
