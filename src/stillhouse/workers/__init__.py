"""Worker processes: spawned and ended, limited in memory and time, and spoken to by typed messages."""
