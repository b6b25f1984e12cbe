"""Records of `stillhouse accelerate` as dataclasses: candidates (what to measure), trials (measurements), report."""
