"""Roles of a pipeline's networks, such as denoiser; a manifest lists its networks by role."""

DENOISER = "denoiser"
"""The network that predicts noise, velocity or the clean picture at each evaluation."""
DENOISER_FULL, DENOISER_SHALLOW = "denoiser_full", "denoiser_shallow"
"""The two graphs of a denoiser that is split for feature caching: with its deep layers, and without them."""
ENCODER, DECODER = "encoder", "decoder"
"""The autoencoder's two halves: pictures to latents, latents to pictures."""
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
"""The text encoders, in the order in which their outputs are joined."""
CONTROLNET = "controlnet"
