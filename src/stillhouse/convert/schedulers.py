"""diffusers' scheduler configurations as schedules, predictions, spacings and samplers of ours."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import diffusers

from stillhouse.diffusion import Prediction, Schedule, SigmaSpacing, Spacing
from stillhouse.errors import ImportFailed

SAMPLERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "EulerDiscreteScheduler": "euler",
    "HeunDiscreteScheduler": "heun",
    "LCMScheduler": "lcm",
    "PNDMScheduler": "dpmpp_2m",  # of the same order, and needs no start-up steps
    "UniPCMultistepScheduler": "unipc",
}


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How a model is meant to be walked; fields as in `Manifest`."""

    schedule: Schedule
    prediction: Prediction
    spacing: Spacing
    sigmas: SigmaSpacing
    steps_offset: int
    sampler: str


def read_sampling_config(config: Mapping[str, Any], name: str, *, is_xl: bool) -> SamplingConfig:
    """Read a scheduler's configuration.

    Args:
        config: scheduler_config.json; what it leaves out is as the class has it.
        name: the scheduler's class.
        is_xl: diffusers' pipelines before XL take steps_offset as 1 whatever is written.

    Raises:
        ImportFailed: a scheduler or a setting without a counterpart.
    """
    if name not in SAMPLERS:
        raise ImportFailed(f"the scheduler {name} is not known", allowed=", ".join(SAMPLERS))
    config = {**_defaults(name), **config}
    if config.get("trained_betas") is not None:
        raise ImportFailed("the scheduler lists betas of its own (trained_betas)", allowed="a named beta schedule")
    if config.get("thresholding"):  # clip_sample, its sibling: pipelines before XL switch it off
        raise ImportFailed("the scheduler's thresholding is true", allowed="false: latents have no bounds to keep")
    try:
        schedule = Schedule(
            kind=config["beta_schedule"],
            beta_start=config["beta_start"],
            beta_end=config["beta_end"],
            train_steps=config["num_train_timesteps"],
            zero_terminal_snr=config.get("rescale_betas_zero_snr", False),
        )
    except ValueError as error:
        raise ImportFailed(f"the scheduler's configuration cannot be used: {error}") from error
    prediction = config["prediction_type"]
    if prediction not in ("epsilon", "sample", "v_prediction"):
        raise ImportFailed(f"prediction_type is {prediction!r}", allowed="epsilon, sample, v_prediction")
    return SamplingConfig(
        schedule=schedule,
        prediction=cast(Prediction, prediction),
        spacing=_spacing(config, name),
        sigmas=_sigmas(config),
        steps_offset=config.get("steps_offset", 0) if is_xl else 1,
        sampler=_sampler(config, name),
    )


def _defaults(name: str) -> dict[str, Any]:
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def _spacing(config: Mapping[str, Any], name: str) -> Spacing:
    """LCMScheduler has a layout of its own, whose timesteps are within 20 of trailing spacing's."""
    return "trailing" if name == "LCMScheduler" else config.get("timestep_spacing", "leading")


def _sigmas(config: Mapping[str, Any]) -> SigmaSpacing:
    for setting in ("use_beta_sigmas", "use_flow_sigmas", "use_lu_lambdas"):
        if config.get(setting):
            raise ImportFailed(f"the scheduler sets {setting}", allowed="use_karras_sigmas, use_exponential_sigmas")
    if config.get("use_karras_sigmas"):
        return "karras"
    return "exponential" if config.get("use_exponential_sigmas") else "schedule"


def _sampler(config: Mapping[str, Any], name: str) -> str:
    if str(config.get("algorithm_type", "")).startswith("sde"):
        return "dpmpp_2m_sde"
    return SAMPLERS[name]
