"""Every number of the training, in one place."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StageRecipe:
    """How long and how fast one stage learns.

    The learning rate warms up, stays, and falls linearly to zero over the last `decay` share of the updates, so
    that a longer run can go on from the point before the fall.
    """

    updates: int
    batch: int
    rate: float
    warm_up: int
    decay: float
    weight_decay: float
    average: float
    report_every: int
    judge_every: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """The three learning stages and what they share."""

    seed: int = 20261121
    autoencoder: StageRecipe = StageRecipe(2500, 64, 2e-3, 50, 0.6, 1e-5, 0.99, 25, 500)
    text_encoder: StageRecipe = StageRecipe(1200, 128, 1e-3, 50, 0.6, 1e-2, 0.99, 50, 400)
    denoiser: StageRecipe = StageRecipe(7000, 64, 1e-3, 200, 0.3, 1e-2, 0.999, 25, 1000)
    latents: int = 60_000
    """Scenes that the denoiser learns from; their latents are made once."""
    empty_caption: float = 0.1
    """Share of examples without a caption, which classifier-free guidance needs."""
    uniform_noise_levels: float = 0.25
    """Share of noise levels drawn evenly over the schedule; the rest are drawn so that log SNR ~ N(0.5, 2), where
    outlines are decided."""
