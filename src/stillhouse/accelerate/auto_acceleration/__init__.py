"""Compatibility with the config files and folders of Auto-Acceleration."""
