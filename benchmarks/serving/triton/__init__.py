"""Triton Inference Server from the wheel nvidia-pytriton."""
