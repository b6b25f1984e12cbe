"""Whether two trees of this project draw the same latents and pixels, bit for bit; see `__main__`."""
