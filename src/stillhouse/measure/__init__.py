"""Measurements: time, memory, the machine, and the fidelity of tensors, pictures and sets of pictures."""
