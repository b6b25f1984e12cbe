"""Records of a sweep as frozen dataclasses: candidates (what to measure), trials (measurements) and the report."""
