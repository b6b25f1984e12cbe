"""Training of the embedded model, from nothing, on pictures that the project draws itself.

`python -m stillhouse.models.shapes.train` walks through four stages, each resumable: the tokenizer is made, the
autoencoder learns to reconstruct, the text encoder learns to understand captions, the denoiser learns to draw.
"""
