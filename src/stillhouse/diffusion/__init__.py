"""The mathematics of a walk from noise to picture: levels, predictions, samplers, guidance, noise, trajectories."""

from stillhouse.diffusion.arrays import NUMPY, Arrays
from stillhouse.diffusion.guidance import guide, is_guided, rescale
from stillhouse.diffusion.noise import INITIAL_STEP, MAX_SEED, check_seed, gaussian
from stillhouse.diffusion.prediction import Prediction, add_noise, predict_denoised, predicted_noise, training_target
from stillhouse.diffusion.samplers import SAMPLERS, Evaluation, Sampler, SamplerState, ddim_coefficients, find_sampler
from stillhouse.diffusion.sampling_plan import SamplingPlan, check_cache_interval, check_guidance_interval
from stillhouse.diffusion.schedule import Schedule, ScheduleKind, alphas_cumprod, noise_levels
from stillhouse.diffusion.step_cache import CachedFeatures, Conditioning, Denoiser, SplitDenoiser
from stillhouse.diffusion.timestep_grid import (
    CLEAN,
    NoiseLevel,
    SigmaSpacing,
    Spacing,
    TimestepGrid,
    grid_from_timesteps,
    make_grid,
)
from stillhouse.diffusion.trajectory import InpaintBlend, Trajectory, advance

__all__ = [
    "CLEAN",
    "INITIAL_STEP",
    "MAX_SEED",
    "NUMPY",
    "SAMPLERS",
    "Arrays",
    "CachedFeatures",
    "Conditioning",
    "Denoiser",
    "Evaluation",
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
    "alphas_cumprod",
    "check_cache_interval",
    "check_guidance_interval",
    "check_seed",
    "ddim_coefficients",
    "find_sampler",
    "gaussian",
    "grid_from_timesteps",
    "guide",
    "is_guided",
    "make_grid",
    "noise_levels",
    "predict_denoised",
    "predicted_noise",
    "rescale",
    "training_target",
]
