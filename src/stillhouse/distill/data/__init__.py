"""Training data of students: pictures with captions, latents and teacher trajectories, cached in files."""
