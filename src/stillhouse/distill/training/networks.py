"""U-Nets in torch, as targets want them: shown noisy pictures, they tell the clean ones that they see."""

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from stillhouse.diffusion import Prediction, Schedule, noise_levels, predict_denoised
from stillhouse.distill.training.targets import DenoiseFn, Levels

GUIDANCE_CHANNELS = 256
"""Of the embedded guidance scale; diffusers' pipelines embed with as many as the U-Net's `time_cond_proj_dim`."""
_DIFFUSERS_DEFAULTS = "_use_default_values"
"""Names of a configuration's entries that diffusers would set back to their defaults."""
_PROJECTION = "time_embedding.cond_proj.weight"

UNetInputs = Mapping[str, Tensor]
"""A U-Net's inputs beside pictures and timesteps: encoder_hidden_states [B, L, D], for XL text_embeds and time_ids."""


@dataclass(frozen=True, slots=True, eq=False)
class GuidedInputs:
    """What each picture of a batch is to show.

    Args:
        said: the prompts.
        unsaid: the negative prompts, as many.
        guidance: scales as in diffusers, float32 [B]; 1 is none.
    """

    cond: UNetInputs
    uncond: UNetInputs
    guidance: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Denoiser:
    """A U-Net and what its output means.

    Args:
        unet: diffusers' UNet2DConditionModel.
        schedule: its own. Pictures may come at levels of another one: it is then asked at its nearest level.
        prediction: what its output means.
    """

    unet: Any
    schedule: Schedule
    prediction: Prediction

    @property
    def is_conditioned(self) -> bool:
        """Whether it was distilled with its guidance inside, and takes the scale as an input."""
        return self.unet.config.time_cond_proj_dim is not None

    def denoise_fn(self, inputs: GuidedInputs) -> DenoiseFn:
        """The network guided as a batch asks: in one row where it takes the scale as an input, else in two."""
        return self.single_row_fn(inputs) if self.is_conditioned else self.cfg_fn(inputs)

    def single_row_fn(self, inputs: GuidedInputs) -> DenoiseFn:
        """The network in one row for each picture: what it sees by the prompt, told the scale if it takes one."""

        def clean(z: Tensor, at: Levels) -> Tensor:
            return self._to_clean(self._predict(z, at, inputs.cond, inputs.guidance), z, at)

        return clean

    def cfg_fn(self, inputs: GuidedInputs) -> DenoiseFn:
        """Classifier-free guidance (arXiv 2207.12598): away from the negative prompt, in two rows for each picture."""

        def clean(z: Tensor, at: Levels) -> Tensor:
            twice = Levels(*(torch.cat([part, part]) for part in (at.timestep, at.alpha, at.sigma)))
            rows = {name: torch.cat([inputs.uncond[name], said]) for name, said in inputs.cond.items()}
            unsaid, said = self._predict(torch.cat([z, z]), twice, rows, None).chunk(2)
            scale = inputs.guidance.view(-1, *[1] * (z.ndim - 1))
            return self._to_clean(unsaid + scale * (said - unsaid), z, at)

        return clean

    def _predict(self, z: Tensor, at: Levels, inputs: UNetInputs, guidance: Tensor | None) -> Tensor:
        """The output itself."""
        timesteps, _, _ = self._nearest_levels(at)
        added = {name: inputs[name] for name in ("text_embeds", "time_ids") if name in inputs}
        output: Tensor = self.unet(
            z,
            timesteps.to(z.device),
            encoder_hidden_states=inputs["encoder_hidden_states"],
            timestep_cond=self._embed_guidance(guidance, z) if self.is_conditioned and guidance is not None else None,
            added_cond_kwargs=added or None,
            return_dict=False,
        )[0]
        return output

    def _to_clean(self, output: Tensor, z: Tensor, at: Levels) -> Tensor:
        _, alpha, sigma = self._nearest_levels(at)
        shaped = [level.view(-1, *[1] * (z.ndim - 1)).to(z) for level in (alpha, sigma)]
        clean: Tensor = predict_denoised(self.prediction, output, z, *shaped)
        return clean

    def _nearest_levels(self, at: Levels) -> tuple[Tensor, Tensor, Tensor]:
        """The levels of its own schedule that are nearest, by the angle atan2(sigma, alpha)."""
        alphas, sigmas = (torch.from_numpy(np.array(level)) for level in noise_levels(self.schedule))
        angles = torch.atan2(sigmas, alphas)
        wanted = torch.atan2(at.sigma, at.alpha).cpu()
        nearest = (angles[None] - wanted[:, None]).abs().argmin(1)
        return nearest, alphas[nearest], sigmas[nearest]

    def _embed_guidance(self, guidance: Tensor, z: Tensor) -> Tensor:
        """As `embed_guidance`, of a whole batch and where it lies."""
        channels = self.unet.config.time_cond_proj_dim
        half = channels // 2
        places = torch.arange(half, dtype=torch.float64, device=z.device)
        frequencies = torch.exp(places * -(math.log(10_000.0) / (half - 1)))
        angles = 1000 * (guidance.to(z.device).double() - 1)[:, None] * frequencies
        odd = angles.new_zeros(len(angles), channels % 2)
        return torch.cat([angles.sin(), angles.cos(), odd], dim=1).to(z)


def student_parameterization(teacher: Denoiser) -> tuple[Schedule, Prediction]:
    """The schedule of this teacher's students, and what their output means.

    One that tells noise gets students that tell velocity, on its own schedule with a zero terminal SNR. The clean
    picture is read out of a noise prediction as (z - sigma * noise) / alpha: at the first level of Stable Diffusion
    that takes the network's error 14.6 times. Many steps repair it; of a few, the first makes the picture. From a
    velocity it is alpha * z - sigma * v, which enlarges no error anywhere, pure noise included (Salimans and Ho, arXiv
    2202.00512, section 4; Lin et al., arXiv 2305.08891, section 3). The student learns the other meaning together with
    the guidance, from its teacher's weights; it takes a longer first lesson (3,000 to 5,000 updates for Stable
    Diffusion; Meng et al., arXiv 2210.03142, appendix).

    One that tells velocity, and never saw pure noise, gets students that do, too: Stable Diffusion 2.1 begins at a
    level where 7 % of a picture is left, and is served from noise without any. But the levels of one that takes the
    scale already are those that it was taught, and stay.
    """
    if teacher.schedule.is_flow or (teacher.prediction != "epsilon" and teacher.is_conditioned):
        return teacher.schedule, teacher.prediction
    prediction: Prediction = "v_prediction" if teacher.prediction == "epsilon" else teacher.prediction
    return replace(teacher.schedule, zero_terminal_snr=True), prediction


def add_guidance_embedding(unet: Any) -> Any:
    """A copy that takes the guidance scale as an input, and at first says what the original does, whatever the scale.

    The new projection starts at zero; diffusers would leave it random. One that takes the scale already is copied.
    """
    if unet.config.time_cond_proj_dim:
        return deepcopy(unet)
    config = {name: value for name, value in unet.config.items() if name != _DIFFUSERS_DEFAULTS}
    copy = UNet2DConditionModel.from_config({**config, "time_cond_proj_dim": GUIDANCE_CHANNELS})
    weights = {**unet.state_dict(), _PROJECTION: torch.zeros_like(copy.state_dict()[_PROJECTION])}
    copy.load_state_dict(weights)
    return copy.to(next(unet.parameters()).device)
