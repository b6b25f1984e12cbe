"""Worker processes, which run pipelines, and their supervisor in the server."""
