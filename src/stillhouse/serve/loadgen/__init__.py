"""Open-loop load generator: sends requests at planned times, and reports latency and goodput (answers in time)."""
