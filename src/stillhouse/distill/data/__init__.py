"""Training data of students: captions, pictures, latents and trajectories of the teacher, kept in files."""
