"""Documentation that is generated from the code: `python -m tools.docs` writes it, `--check` compares it."""
