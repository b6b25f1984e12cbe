"""Worker processes: started and ended, limited in memory and time, and driven by typed messages."""
