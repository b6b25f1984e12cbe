"""How long and how fast each stage learns; what belongs to one stage alone stands in that stage's file."""

from dataclasses import dataclass

from stillhouse.fit.recipe import StageRecipe

_AUTOENCODER = StageRecipe(
    updates=2500,
    batch_size=64,
    learning_rate=2e-3,
    warmup_updates=50,
    decay_fraction=0.6,
    weight_decay=1e-5,
    ema_decay=0.99,
    report_every=25,
    eval_every=500,
)
_TEXT_ENCODER = StageRecipe(
    updates=1200,
    batch_size=128,
    learning_rate=1e-3,
    warmup_updates=50,
    decay_fraction=0.6,
    weight_decay=1e-2,
    ema_decay=0.99,
    report_every=50,
    eval_every=400,
)
_DENOISER = StageRecipe(
    updates=7000,
    batch_size=64,
    learning_rate=1e-3,
    warmup_updates=200,
    decay_fraction=0.3,
    weight_decay=1e-2,
    ema_decay=0.999,
    report_every=25,
    eval_every=1000,
)
_FEATURES = StageRecipe(
    updates=3000,
    batch_size=64,
    learning_rate=1e-3,
    warmup_updates=50,
    decay_fraction=0.7,
    weight_decay=1e-2,
    ema_decay=0.99,
    report_every=50,
    eval_every=500,
)


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """The learning stages and what they share."""

    seed: int = 20261121
    autoencoder: StageRecipe = _AUTOENCODER
    text_encoder: StageRecipe = _TEXT_ENCODER
    denoiser: StageRecipe = _DENOISER
    features: StageRecipe = _FEATURES
    latent_count: int = 60_000
    """Scenes that the denoiser learns from; their latents are made once."""
    empty_caption_share: float = 0.1
    """Share of examples without a caption, which classifier-free guidance needs."""
    uniform_level_share: float = 0.25
    """Share of noise levels drawn evenly over the schedule; the rest are drawn so that log SNR ~ N(0.5, 2), where
    outlines are decided."""
