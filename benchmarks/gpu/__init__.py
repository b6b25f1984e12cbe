"""What a GPU makes of it: `python -m benchmarks.gpu`, with torch, Triton, diffusers and CUDA, and no network."""
