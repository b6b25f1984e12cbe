"""HTML page of an evaluation."""
