"""Training data of distilled models: captioned pictures, their latents, and sampling trajectories of the teacher."""
