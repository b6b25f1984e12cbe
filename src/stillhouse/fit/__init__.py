"""Training loop in torch, shared by the embedded model and by distilled students; resumes bit-exactly."""
