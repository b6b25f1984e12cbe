"""Students compared with their teacher on the same captions and seeds."""
