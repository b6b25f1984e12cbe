"""The mathematics of diffusion on NumPy-like arrays: noise levels, predictions, samplers, guidance, trajectories."""

from stillhouse.diffusion.arrays import NUMPY, Arrays
from stillhouse.diffusion.denoiser import Conditioning, Denoiser, SplitDenoiser
from stillhouse.diffusion.effects import Effect, FeatureCache, InpaintBlend
from stillhouse.diffusion.guidance import (
    CONDITIONAL,
    UNCONDITIONAL,
    Guidance,
    check_guidance_interval,
    classifier_free,
    guide,
)
from stillhouse.diffusion.noise import INITIAL_STEP, MAX_SEED, gaussian
from stillhouse.diffusion.prediction import Prediction, add_noise, predict_denoised
from stillhouse.diffusion.samplers import SAMPLERS, Evaluation, Sampler, SamplerState, ddim_coefficients, find_sampler
from stillhouse.diffusion.sampling_plan import SamplingPlan, check_cache_interval
from stillhouse.diffusion.schedule import Schedule, ScheduleKind, noise_levels
from stillhouse.diffusion.timestep_grid import (
    CLEAN,
    NoiseLevel,
    SigmaSpacing,
    Spacing,
    TimestepGrid,
    grid_from_timesteps,
    make_grid,
)
from stillhouse.diffusion.trajectory import Branch, Trajectory, advance

__all__ = [
    "CLEAN",
    "CONDITIONAL",
    "INITIAL_STEP",
    "MAX_SEED",
    "NUMPY",
    "SAMPLERS",
    "UNCONDITIONAL",
    "Arrays",
    "Branch",
    "Conditioning",
    "Denoiser",
    "Effect",
    "Evaluation",
    "FeatureCache",
    "Guidance",
    "InpaintBlend",
    "NoiseLevel",
    "Prediction",
    "Sampler",
    "SamplerState",
    "SamplingPlan",
    "Schedule",
    "ScheduleKind",
    "SigmaSpacing",
    "Spacing",
    "SplitDenoiser",
    "TimestepGrid",
    "Trajectory",
    "add_noise",
    "advance",
    "check_cache_interval",
    "check_guidance_interval",
    "classifier_free",
    "ddim_coefficients",
    "find_sampler",
    "gaussian",
    "grid_from_timesteps",
    "guide",
    "make_grid",
    "noise_levels",
    "predict_denoised",
]
