"""What outlives the server: keys and jobs, in SQLite, and the pictures of jobs beside it."""
