"""Training of the model that ships with the package (the embedded model) from scratch, on rendered scenes.

`python -m stillhouse.shapes.train` builds the tokenizer and trains three networks one after the other: the
autoencoder, the text encoder and the denoiser. An interrupted training is resumed.
"""
