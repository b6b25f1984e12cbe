"""Pipelines at run time: their directories are read, and their networks opened and run. Only LoRA needs torch."""
