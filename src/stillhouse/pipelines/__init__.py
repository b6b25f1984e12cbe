"""Pipelines at run time: read, open, and run for requests. Only the modules for LoRA need torch."""
