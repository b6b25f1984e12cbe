"""Training of the embedded model, from nothing, on pictures that the project draws itself.

`python -m stillhouse.shapes.train` makes the tokenizer and walks through three stages, each resumable:
the autoencoder learns to reconstruct, the text encoder to understand captions, the denoiser to draw.
"""
