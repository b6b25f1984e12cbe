"""Denoisers in torch: diffusers' U-Nets as functions from noisy latents to predicted clean latents."""

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from stillhouse.diffusion import Prediction, Schedule, noise_levels, predict_denoised
from stillhouse.distill.training.targets import DenoiseFn, Levels

GUIDANCE_CHANNELS = 256
"""Width of the guidance scale's embedding in students; diffusers calls this setting `time_cond_proj_dim`."""
_DIFFUSERS_DEFAULTS = "_use_default_values"
"""Key of a diffusers configuration that lists settings; `from_config` would reset these settings to their defaults."""
DENOISER_FOLDER = "unet"
"""Name of the folder with the denoiser's weights in a pipeline directory, as in diffusers."""
_PROJECTION = "time_embedding.cond_proj.weight"

DenoiserInputs = Mapping[str, Tensor]
"""Inputs of a denoiser besides latents and timesteps, by name.

The names are encoder_hidden_states [B, L, D], and for SDXL also text_embeds and time_ids."""


@dataclass(frozen=True, slots=True, eq=False)
class GuidedInputs:
    """Conditioning of a batch of B samples.

    Args:
        cond: the denoiser's inputs of the prompts, by name, B rows each.
        uncond: the denoiser's inputs of the negative prompts, by name, B rows each; not needed, and possibly
            empty, where the network takes the guidance scale as an input.
        guidance: guidance scales as in diffusers, float32 [B]; 1: no guidance.
    """

    cond: DenoiserInputs
    uncond: DenoiserInputs
    guidance: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Denoiser:
    """A denoising network with its noise schedule and prediction type.

    Args:
        network: diffusers' UNet2DConditionModel.
        schedule: noise schedule of the network's training. For latents at a noise level of another schedule, the
            network is evaluated at the nearest level of this schedule.
        prediction: what the network's output means: epsilon, sample, v_prediction or flow.
    """

    network: Any
    schedule: Schedule
    prediction: Prediction

    @property
    def is_conditioned(self) -> bool:
        """Whether the guidance scale is an input of the network (guidance distillation)."""
        return self.network.config.time_cond_proj_dim is not None

    def denoise_fn(self, inputs: GuidedInputs) -> DenoiseFn:
        """Return a function that predicts clean latents with guidance, for a batch with this conditioning.

        A network that takes the guidance scale as an input evaluates one row a sample; other networks evaluate two
        (classifier-free guidance).
        """
        return self.single_row_fn(inputs) if self.is_conditioned else self.cfg_fn(inputs)

    def single_row_fn(self, inputs: GuidedInputs) -> DenoiseFn:
        """Return a function that predicts clean latents from one network row a sample, without a negative prompt.

        A network that takes the guidance scale as an input gets the scale; other networks are evaluated without
        guidance.
        """

        def denoise(z: Tensor, levels: Levels) -> Tensor:
            return self._to_clean(self._predict(z, levels, inputs.cond, inputs.guidance), z, levels)

        return denoise

    def cfg_fn(self, inputs: GuidedInputs) -> DenoiseFn:
        """Return a function that predicts clean latents with classifier-free guidance (arXiv 2207.12598).

        The function evaluates two network rows a sample: the prompt's and the negative prompt's.
        """

        def denoise(z: Tensor, levels: Levels) -> Tensor:
            doubled = Levels(*(torch.cat([part, part]) for part in (levels.timestep, levels.alpha, levels.sigma)))
            rows = {name: torch.cat([inputs.uncond[name], row]) for name, row in inputs.cond.items()}
            uncond, cond = self._predict(torch.cat([z, z]), doubled, rows, None).chunk(2)
            scale = inputs.guidance.view(-1, *[1] * (z.ndim - 1))
            return self._to_clean(uncond + scale * (cond - uncond), z, levels)

        return denoise

    def _predict(self, z: Tensor, levels: Levels, inputs: DenoiserInputs, guidance: Tensor | None) -> Tensor:
        """Evaluate the network and return its raw output, [B, C, h, w], in its prediction type.

        Args:
            z: noisy latents, [B, C, h, w].
            levels: noise levels of the latents.
            inputs: text inputs by name, B rows each.
            guidance: guidance scales, [B]; used only by networks that take them as an input. None: not given.
        """
        timesteps, _, _ = self._nearest_levels(levels)
        added = {name: inputs[name] for name in ("text_embeds", "time_ids") if name in inputs}
        output: Tensor = self.network(
            z,
            timesteps.to(z.device),
            encoder_hidden_states=inputs["encoder_hidden_states"],
            timestep_cond=self._embed_guidance(guidance, z) if self.is_conditioned and guidance is not None else None,
            added_cond_kwargs=added or None,
            return_dict=False,
        )[0]
        return output

    def _to_clean(self, output: Tensor, z: Tensor, levels: Levels) -> Tensor:
        _, alpha, sigma = self._nearest_levels(levels)
        shaped = [level.view(-1, *[1] * (z.ndim - 1)).to(z) for level in (alpha, sigma)]
        clean: Tensor = predict_denoised(self.prediction, output, z, *shaped)
        return clean

    def _nearest_levels(self, levels: Levels) -> tuple[Tensor, Tensor, Tensor]:
        """Return timesteps, alphas and sigmas, [B] each, of this schedule's levels that are nearest to given levels.

        The distance of two levels is the difference of their angles atan2(sigma, alpha).
        """
        alphas, sigmas = (torch.from_numpy(np.array(level)) for level in noise_levels(self.schedule))
        angles = torch.atan2(sigmas, alphas)
        targets = torch.atan2(levels.sigma, levels.alpha).cpu()
        nearest = (angles[None] - targets[:, None]).abs().argmin(1)
        return nearest, alphas[nearest], sigmas[nearest]

    def _embed_guidance(self, guidance: Tensor, z: Tensor) -> Tensor:
        """Return the sinusoidal embeddings of `guidance`, scales [B], as [B, time_cond_proj_dim] in the dtype of `z`.

        The embedding equals that of the running pipeline, `families.stable_diffusion.embed_guidance`.
        """
        channels = self.network.config.time_cond_proj_dim
        half = channels // 2
        indices = torch.arange(half, dtype=torch.float64, device=z.device)
        frequencies = torch.exp(indices * -(math.log(10_000.0) / (half - 1)))
        angles = 1000 * (guidance.to(z.device).double() - 1)[:, None] * frequencies
        padding = angles.new_zeros(len(angles), channels % 2)
        return torch.cat([angles.sin(), angles.cos(), padding], dim=1).to(z)


def student_parameterization(teacher: Denoiser) -> tuple[Schedule, Prediction]:
    """Return the noise schedule and the prediction type of a teacher's students.

    Students of an epsilon-prediction teacher predict velocity, on the teacher's schedule with zero terminal SNR. The
    clean picture of an epsilon prediction is (z - sigma * epsilon) / alpha, which amplifies the network's error 14.6
    times at the first level of Stable Diffusion. Many sampling steps correct this error, but few steps do not. The
    clean picture of a velocity prediction is alpha * z - sigma * v, which amplifies the error at no level, not even at
    pure noise (Salimans and Ho, arXiv 2202.00512, section 4; Lin et al., arXiv 2305.08891, section 3). The first
    student learns to predict velocity together with the guidance. Its training is therefore longer (3,000 to 5,000
    updates for Stable Diffusion; Meng et al., arXiv 2210.03142, appendix).

    Students of a velocity-prediction teacher also get zero terminal SNR: the first level of Stable Diffusion 2.1
    retains 7 % of the picture, but sampling starts from pure noise. Students of a guidance-distilled teacher that does
    not predict epsilon keep the teacher's schedule, because this teacher was trained at no other levels. Students of a
    flow-matching teacher keep schedule and prediction type.
    """
    if teacher.schedule.is_flow or (teacher.prediction != "epsilon" and teacher.is_conditioned):
        return teacher.schedule, teacher.prediction
    prediction: Prediction = "v_prediction" if teacher.prediction == "epsilon" else teacher.prediction
    return replace(teacher.schedule, zero_terminal_snr=True), prediction


def read_network(directory: Path) -> Any:
    """Read the denoiser of a pipeline directory as diffusers' UNet2DConditionModel, in float32 on the CPU."""
    return UNet2DConditionModel.from_pretrained(directory / DENOISER_FOLDER, torch_dtype=torch.float32)


def add_guidance_embedding(network: Any) -> Any:
    """Return a copy of a U-Net that takes the guidance scale as an additional input.

    The projection of the new input is zero, so that the copy's outputs equal those of the network before training. A
    network that already takes the guidance scale is only copied.
    """
    if network.config.time_cond_proj_dim:
        return deepcopy(network)
    config = {name: value for name, value in network.config.items() if name != _DIFFUSERS_DEFAULTS}
    copy = UNet2DConditionModel.from_config({**config, "time_cond_proj_dim": GUIDANCE_CHANNELS})
    weights = {**network.state_dict(), _PROJECTION: torch.zeros_like(copy.state_dict()[_PROJECTION])}
    copy.load_state_dict(weights)
    return copy.to(next(network.parameters()).device)
