"""Conversion of diffusers' scheduler configurations to the sampling settings of a manifest and a sampler's name."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import diffusers

from stillhouse.diffusion import Prediction, Schedule, SigmaSpacing, Spacing
from stillhouse.errors import ImportFailed
from stillhouse.pipelines.manifest import Sampling

SAMPLERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "EulerDiscreteScheduler": "euler",
    "HeunDiscreteScheduler": "heun",
    "LCMScheduler": "lcm",
    "PNDMScheduler": "dpmpp_2m",  # Stillhouse has no PNDM; DPM-Solver++ 2M has the same order and no start-up steps
    "UniPCMultistepScheduler": "unipc",
}


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """The sampling settings of a manifest, and the name of the sampler that corresponds to a diffusers scheduler."""

    sampling: Sampling
    sampler: str


def read_sampling_config(config: Mapping[str, Any], name: str, *, steps_offset: int | None = None) -> SamplingConfig:
    """Convert a diffusers scheduler's configuration to sampling settings and the name of a sampler.

    Args:
        config: content of scheduler_config.json; missing settings have the defaults of the scheduler's class.
        name: class name of the scheduler.
        steps_offset: offset that the pipeline class uses instead of the configured one; None: as configured.

    Raises:
        ImportFailed: Stillhouse does not have the scheduler, or does not support one of its settings.
    """
    if name not in SAMPLERS:
        raise ImportFailed(f"the scheduler {name} is not known", allowed=", ".join(SAMPLERS))
    config = {**_defaults(name), **config}
    if config.get("trained_betas") is not None:
        raise ImportFailed("the scheduler has its own betas (trained_betas)", allowed="a named beta schedule")
    # Stillhouse has neither thresholding nor clip_sample. clip_sample is ignored here, because diffusers' pipelines of
    # Stable Diffusion 1 and 2 switch it off; for SDXL it is not checked.
    if config.get("thresholding"):
        raise ImportFailed("the scheduler's thresholding is true", allowed="false, since latents are not bounded")
    prediction = config["prediction_type"]
    if prediction not in ("epsilon", "sample", "v_prediction"):
        raise ImportFailed(f"prediction_type is {prediction!r}", allowed="epsilon, sample, v_prediction")
    sampling = Sampling(
        schedule=_schedule(config),
        prediction=cast(Prediction, prediction),
        spacing=_spacing(config, name),
        sigmas=_sigmas(config),
        steps_offset=config.get("steps_offset", 0) if steps_offset is None else steps_offset,
    )
    return SamplingConfig(sampling, _sampler(config, name))


def _schedule(config: Mapping[str, Any]) -> Schedule:
    try:
        return Schedule(
            kind=config["beta_schedule"],
            beta_start=config["beta_start"],
            beta_end=config["beta_end"],
            train_steps=config["num_train_timesteps"],
            zero_terminal_snr=config.get("rescale_betas_zero_snr", False),
        )
    except ValueError as error:
        raise ImportFailed(f"the scheduler's configuration cannot be used: {error}") from error


def _defaults(name: str) -> dict[str, Any]:
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def _spacing(config: Mapping[str, Any], name: str) -> Spacing:
    """Return how a scheduler spaces its timesteps.

    LCMScheduler has a spacing of its own. For LCMScheduler the result is "trailing", whose timesteps differ by at most
    20 from those of LCMScheduler.

    Args:
        config: the scheduler's configuration.
        name: the scheduler's class name.
    """
    return "trailing" if name == "LCMScheduler" else config.get("timestep_spacing", "leading")


def _sigmas(config: Mapping[str, Any]) -> SigmaSpacing:
    for setting in ("use_beta_sigmas", "use_flow_sigmas", "use_lu_lambdas"):
        if config.get(setting):
            raise ImportFailed(
                f"the scheduler sets {setting}",
                allowed="use_karras_sigmas, use_exponential_sigmas, or none of these settings",
            )
    if config.get("use_karras_sigmas"):
        return "karras"
    return "exponential" if config.get("use_exponential_sigmas") else "schedule"


def _sampler(config: Mapping[str, Any], name: str) -> str:
    if str(config.get("algorithm_type", "")).startswith("sde"):
        return "dpmpp_2m_sde"
    return SAMPLERS[name]
