"""Training loop in torch for distilled students and for the package's own model; a resumed training is bit-exact."""
