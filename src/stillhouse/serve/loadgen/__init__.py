"""Open-loop load generator: requests sent at planned times, and a report of latency and goodput."""
