"""Hyper-parameters for training the networks of the package's model, and the encoder of picture features."""

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
    """Hyper-parameters of each network's training, and settings of the denoiser's training data.

    Args:
        seed: decides weights, scenes, captions and noise.
        autoencoder, text_encoder, denoiser: hyper-parameters for these three networks of the model.
        features: hyper-parameters for the classifier whose activations are the features of pictures.
        latent_count: number of scenes that the denoiser is trained on; their latents are encoded once.
        empty_caption_share: share of the examples with an empty caption, which classifier-free guidance requires.
        uniform_level_share: share of the timesteps that are drawn uniformly. Other timesteps are drawn so that the log
            SNR has a normal distribution with mean 0.5 and standard deviation 2, because these noise levels decide
            outlines.
    """

    seed: int = 20261121
    autoencoder: StageRecipe = _AUTOENCODER
    text_encoder: StageRecipe = _TEXT_ENCODER
    denoiser: StageRecipe = _DENOISER
    features: StageRecipe = _FEATURES
    latent_count: int = 60_000
    empty_caption_share: float = 0.1
    uniform_level_share: float = 0.25
