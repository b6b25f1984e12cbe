"""Training of students: step grids, targets, losses, stages and chains of stages."""
