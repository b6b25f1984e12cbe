"""The server's worker processes, which run pipelines, and the supervisor that starts them and exchanges messages."""
