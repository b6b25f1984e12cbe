"""Pages that stand alone: no network, no script, everything in one file."""
