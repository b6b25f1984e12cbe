"""HTML page that compares distilled models (students) with their teacher."""
