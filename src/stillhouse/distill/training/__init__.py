"""Training of students (distilled models of fewer steps): timestep grids, targets, losses and order of training."""
