"""Pipelines at run time: manifest, networks, requests resolved, start, advance and finish. Nothing here needs torch."""
