"""Training loop in torch for the embedded model and for distilled students; an interrupted training resumes exactly."""
