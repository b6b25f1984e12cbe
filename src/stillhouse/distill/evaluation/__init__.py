"""Compare distilled models (students) with their teacher: image quality, prompt alignment, diversity and latency."""
