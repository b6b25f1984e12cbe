"""Triton Inference Server, the real one, out of the wheel nvidia-pytriton."""
