"""The roles that a pipeline's networks play; components of a manifest are named by them."""

DENOISER = "unet"
"""Predicts noise, velocity or the clean picture at each evaluation."""
DENOISER_FULL, DENOISER_SHALLOW = "unet_full", "unet_shallow"
"""The denoiser's two depths, where its graph is split for feature caching."""
ENCODER, DECODER = "vae_encoder", "vae_decoder"
"""The autoencoder's two halves: pictures to latents, latents to pictures."""
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
"""In the order in which their outputs are joined."""
CONTROLNET = "controlnet"
