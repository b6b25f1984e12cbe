"""Training of the embedded model from scratch, on rendered scenes.

`python -m stillhouse.shapes.train` builds the tokenizer and runs three resumable stages: the autoencoder, the text
encoder and the denoiser.
"""
