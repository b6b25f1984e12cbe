"""Third part of training the model that ships with the package: the denoiser, conditioned on captions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from stillhouse.fit.checkpoint import write_atomically
from stillhouse.shapes.caption import sample_held_out, sample_training_caption
from stillhouse.shapes.scene import Scene, render_scene, sample_scene
from stillhouse.shapes.train.architectures import LATENT_CHANNELS, LATENT_SIZE, build_denoiser, build_scheduler
from stillhouse.shapes.train.pictures import (
    mean_scores,
    seeded_rng,
    to_pictures,
    to_tensor,
)
from stillhouse.shapes.train.text import tokenize
from stillhouse.shapes.train.training_plan import TrainingPlan

_EVAL_SAMPLES, _EVAL_STEPS, _EVAL_GUIDANCE = 100, 25, 2.5
_ENCODE_BATCH = 100


class DenoiserStage:
    """Training task for the loop `fit`: the denoiser learns to predict the velocity v (arXiv 2202.00512, appendix D).

    Args:
        plan: seed, hyper-parameters, and settings of the training data.
        tokenizer: CLIP tokenizer of the captions.
        text_encoder: trained text encoder, which stays unchanged.
        autoencoder: trained autoencoder, which stays unchanged.
        folder: existing folder for the file that caches the latents of the training pictures.
    """

    name = "denoiser"
    fingerprint = ""

    def __init__(self, plan: TrainingPlan, tokenizer: Any, text_encoder: Any, autoencoder: Any, folder: Path) -> None:
        self.seed, self.plan, self.recipe = plan.seed, plan, plan.denoiser
        self.tokenizer, self.text_encoder, self.autoencoder = tokenizer, text_encoder, autoencoder
        # The memory format channels_last is used because training is then an eighth faster on CPUs without AVX-512, and
        # no slower on other CPUs.
        self.network: Any = build_denoiser().to(memory_format=torch.channels_last)
        rng = seeded_rng(self.seed, 5)
        self._scenes = [sample_scene(rng) for _ in range(plan.latent_count)]
        self._latents = _cached_latents(folder / "latents.pt", autoencoder, self._scenes)
        self._latents *= autoencoder.config.scaling_factor
        alphas = build_scheduler().alphas_cumprod.double()
        self._alpha, self._sigma = alphas.sqrt().float(), (1 - alphas).sqrt().float()
        self._log_snr = (alphas.clamp(min=1e-12).log() - (1 - alphas).log()).float()
        rng = seeded_rng(self.seed, 6)
        self._held_out = [sample_held_out(rng)[1] for _ in range(_EVAL_SAMPLES)]

    def loss(self, update: int) -> torch.Tensor:
        """Return the mean squared error of the velocity in batch number `update`, a scalar with gradients."""
        rng = seeded_rng(self.seed, 7, update)
        clean, states = self._batch(rng)
        timesteps = self._sample_timesteps(rng)
        alpha, sigma = (table[timesteps].view(-1, 1, 1, 1) for table in (self._alpha, self._sigma))
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
        noisy = (alpha * clean + sigma * noise).contiguous(memory_format=torch.channels_last)
        predicted = self.network(noisy, timesteps, states, return_dict=False)[0]
        return functional.mse_loss(predicted, alpha * noise - sigma * clean)

    def evaluate(self) -> Mapping[str, float]:
        """Generate 100 pictures from captions that training never uses, and return the oracle's mean scores by name.

        The pictures are sampled with 25 steps of diffusers' DDIM. The oracle recognises the figures in pictures.
        """
        scheduler = build_scheduler()
        scheduler.set_timesteps(_EVAL_STEPS)
        texts = [str(caption) for caption in self._held_out]
        states = self.encode_captions(texts + [""] * len(texts))
        shape = (len(texts), LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)
        latents = torch.from_numpy(seeded_rng(self.seed, 8).standard_normal(shape, dtype=np.float32))
        for timestep in scheduler.timesteps:
            velocity = self.network(torch.cat([latents, latents]), timestep, states, return_dict=False)[0]
            cond, uncond = velocity.chunk(2)
            velocity = uncond + _EVAL_GUIDANCE * (cond - uncond)
            latents = scheduler.step(velocity, timestep, latents).prev_sample
        decoded = self.autoencoder.decode(latents / self.autoencoder.config.scaling_factor).sample
        return mean_scores(to_pictures(decoded), self._held_out)

    @torch.no_grad()
    def encode_captions(self, texts: list[str]) -> torch.Tensor:
        """Return the text encoder's hidden states of captions, float32 [captions, 24 tokens, 128]."""
        states: torch.Tensor = self.text_encoder(tokenize(self.tokenizer, texts)).last_hidden_state
        return states

    def _batch(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        indices: list[int] = []
        texts: list[str] = []
        while len(indices) < self.recipe.batch_size:
            index = int(rng.integers(len(self._scenes)))
            caption = sample_training_caption(self._scenes[index], rng)
            if caption is not None:
                indices.append(index)
                texts.append("" if rng.random() < self.plan.empty_caption_share else str(caption))
        return self._latents[indices].float(), self.encode_captions(texts)

    def _sample_timesteps(self, rng: np.random.Generator) -> torch.Tensor:
        count = self.recipe.batch_size
        uniform = rng.integers(len(self._alpha), size=count)
        log_snr = torch.from_numpy(rng.normal(0.5, 2.0, size=count).astype(np.float32))
        nearest = (self._log_snr[None] - log_snr[:, None]).abs().argmin(1)
        return torch.where(
            torch.from_numpy(rng.random(count) < self.plan.uniform_level_share), torch.from_numpy(uniform), nearest
        )


@torch.no_grad()
def _cached_latents(path: Path, autoencoder: Any, scenes: list[Scene]) -> torch.Tensor:
    """Encode the pictures of scenes and write their latents to a file, or read the latents that an earlier run wrote.

    The file is used if its number of latents is right and its first 8 latents agree with those of this autoencoder.

    Args:
        path: the file.
        autoencoder: diffusers' AutoencoderKL.
        scenes: scenes that are rendered to pictures.

    Returns:
        unscaled latents, float16 [scenes, 4, 16, 16].
    """
    probe = autoencoder.encode(to_tensor([render_scene(scene) for scene in scenes[:8]])).latent_dist.mode()
    if path.exists():
        cached: torch.Tensor = torch.load(path, weights_only=True)
        if len(cached) == len(scenes) and torch.allclose(cached[:8].float(), probe, atol=0.02, rtol=0.01):
            return cached
    parts = [
        autoencoder.encode(
            to_tensor([render_scene(scene) for scene in scenes[start : start + _ENCODE_BATCH]])
        ).latent_dist.mode()
        for start in range(0, len(scenes), _ENCODE_BATCH)
    ]
    latents = torch.cat(parts).half()
    write_atomically(path, lambda partial: torch.save(latents, partial))
    return latents
