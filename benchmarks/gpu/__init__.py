"""The benchmark of a GPU: `python -m benchmarks.gpu`, with torch, Triton, diffusers and CUDA, offline."""
