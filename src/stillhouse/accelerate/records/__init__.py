"""Records of a sweep: candidates, trials and the report, as frozen dataclasses and JSON."""
