"""Persistent state: API keys and jobs in SQLite, images of jobs as files."""
