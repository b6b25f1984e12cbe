"""Servers of every make before the same requests, and what serving costs."""
