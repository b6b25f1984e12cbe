"""Networks in torch as denoisers: functions from noisy latents to predicted clean latents."""

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
"""Width of the guidance embedding; diffusers stores this width in the network's `time_cond_proj_dim`."""
_DIFFUSERS_DEFAULTS = "_use_default_values"
"""Configuration entry that lists the values which diffusers would reset to their defaults."""
DENOISER_FOLDER = "unet"
"""Sub-directory of the denoiser in an imported pipeline, as diffusers names it."""
_PROJECTION = "time_embedding.cond_proj.weight"

DenoiserInputs = Mapping[str, Tensor]
"""Inputs of a denoiser besides latents and timesteps, by name.

They are encoder_hidden_states [B, L, D], and for SDXL also text_embeds and time_ids."""


@dataclass(frozen=True, slots=True, eq=False)
class GuidedInputs:
    """Conditioning of a batch.

    Args:
        cond: inputs of the prompts, B rows.
        uncond: inputs of the negative prompts, B rows.
        guidance: guidance scales as in diffusers, float32 [B]; 1: no guidance.
    """

    cond: DenoiserInputs
    uncond: DenoiserInputs
    guidance: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Denoiser:
    """A network with its schedule and prediction type.

    Args:
        network: diffusers' UNet2DConditionModel.
        schedule: noise schedule of the network's training. For latents at levels of another schedule, the nearest level
            is used.
        prediction: prediction type of the network's output.
    """

    network: Any
    schedule: Schedule
    prediction: Prediction

    @property
    def is_conditioned(self) -> bool:
        """Whether the guidance scale is an input of the network (guidance distillation)."""
        return self.network.config.time_cond_proj_dim is not None

    def denoise_fn(self, inputs: GuidedInputs) -> DenoiseFn:
        """Return the guided denoiser of a batch: `single_row_fn` if the guidance scale is an input, else `cfg_fn`."""
        return self.single_row_fn(inputs) if self.is_conditioned else self.cfg_fn(inputs)

    def single_row_fn(self, inputs: GuidedInputs) -> DenoiseFn:
        """Return the denoiser that evaluates one row for each sample, with the prompt.

        The row also has the guidance scale where the network takes the scale as an input.
        """

        def denoise(z: Tensor, levels: Levels) -> Tensor:
            return self._to_clean(self._predict(z, levels, inputs.cond, inputs.guidance), z, levels)

        return denoise

    def cfg_fn(self, inputs: GuidedInputs) -> DenoiseFn:
        """Return the denoiser with classifier-free guidance (arXiv 2207.12598), which evaluates two rows a sample."""

        def denoise(z: Tensor, levels: Levels) -> Tensor:
            doubled = Levels(*(torch.cat([part, part]) for part in (levels.timestep, levels.alpha, levels.sigma)))
            rows = {name: torch.cat([inputs.uncond[name], row]) for name, row in inputs.cond.items()}
            uncond, cond = self._predict(torch.cat([z, z]), doubled, rows, None).chunk(2)
            scale = inputs.guidance.view(-1, *[1] * (z.ndim - 1))
            return self._to_clean(uncond + scale * (cond - uncond), z, levels)

        return denoise

    def _predict(self, z: Tensor, levels: Levels, inputs: DenoiserInputs, guidance: Tensor | None) -> Tensor:
        """Return the output of the network."""
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
        """Return timesteps, alphas and sigmas of the schedule's nearest levels, by the angle atan2(sigma, alpha)."""
        alphas, sigmas = (torch.from_numpy(np.array(level)) for level in noise_levels(self.schedule))
        angles = torch.atan2(sigmas, alphas)
        targets = torch.atan2(levels.sigma, levels.alpha).cpu()
        nearest = (angles[None] - targets[:, None]).abs().argmin(1)
        return nearest, alphas[nearest], sigmas[nearest]

    def _embed_guidance(self, guidance: Tensor, z: Tensor) -> Tensor:
        """Return the embedding of guidance scales, [B, channels]; see `families.stable_diffusion.embed_guidance`."""
        channels = self.network.config.time_cond_proj_dim
        half = channels // 2
        indices = torch.arange(half, dtype=torch.float64, device=z.device)
        frequencies = torch.exp(indices * -(math.log(10_000.0) / (half - 1)))
        angles = 1000 * (guidance.to(z.device).double() - 1)[:, None] * frequencies
        padding = angles.new_zeros(len(angles), channels % 2)
        return torch.cat([angles.sin(), angles.cos(), padding], dim=1).to(z)


def student_parameterization(teacher: Denoiser) -> tuple[Schedule, Prediction]:
    """Return the schedule and prediction type of a teacher's students.

    Students of an epsilon-prediction teacher predict velocity, on the teacher's schedule with zero terminal SNR. The
    clean picture of an epsilon prediction is (z - sigma * epsilon) / alpha, which amplifies the network's error 14.6
    times at the first level of Stable Diffusion. Many steps correct this error; a few steps do not. The clean picture
    of a velocity prediction is alpha * z - sigma * v, which amplifies no error at any level, pure noise included
    (Salimans and Ho, arXiv 2202.00512, section 4; Lin et al., arXiv 2305.08891, section 3). The student learns the new
    parameterization together with the guidance, which takes a longer first stage (3,000 to 5,000 updates for Stable
    Diffusion; Meng et al., arXiv 2210.03142, appendix).

    Students of a velocity-prediction teacher get zero terminal SNR, too: the first level of Stable Diffusion 2.1
    retains 7 % of the picture, but sampling starts from pure noise. Students of a guidance-distilled teacher keep its
    schedule, because such a teacher was trained at the levels of this schedule only.
    """
    if teacher.schedule.is_flow or (teacher.prediction != "epsilon" and teacher.is_conditioned):
        return teacher.schedule, teacher.prediction
    prediction: Prediction = "v_prediction" if teacher.prediction == "epsilon" else teacher.prediction
    return replace(teacher.schedule, zero_terminal_snr=True), prediction


def read_network(directory: Path) -> Any:
    """Read the denoiser of an imported pipeline in float32."""
    return UNet2DConditionModel.from_pretrained(directory / DENOISER_FOLDER, torch_dtype=torch.float32)


def add_guidance_embedding(network: Any) -> Any:
    """Return a copy of a network with the guidance scale as an input; its outputs do not depend on the scale at first.

    The new projection is zero, because the random projection that diffusers would make changes the outputs. A network
    that already takes the guidance scale is only copied.
    """
    if network.config.time_cond_proj_dim:
        return deepcopy(network)
    config = {name: value for name, value in network.config.items() if name != _DIFFUSERS_DEFAULTS}
    copy = UNet2DConditionModel.from_config({**config, "time_cond_proj_dim": GUIDANCE_CHANNELS})
    weights = {**network.state_dict(), _PROJECTION: torch.zeros_like(copy.state_dict()[_PROJECTION])}
    copy.load_state_dict(weights)
    return copy.to(next(network.parameters()).device)
