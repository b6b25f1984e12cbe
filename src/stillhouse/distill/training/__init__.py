"""How a student is trained: step grids, targets, losses, stages and chains of stages."""
