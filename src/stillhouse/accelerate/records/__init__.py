"""Records of a run of `accelerate`: candidates, trials and the report, as frozen dataclasses and JSON."""
