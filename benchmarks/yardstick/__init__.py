"""Comparison of the latents and pixels that two trees of this project generate, bit for bit; see `__main__`."""
