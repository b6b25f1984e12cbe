"""The mathematics of a walk from noise to picture: levels, predictions, samplers, guidance, noise, trajectories."""

from stillhouse.diffusion.arrays import NUMPY, Arrays
from stillhouse.diffusion.guidance import guide, is_guided, rescale
from stillhouse.diffusion.noise import LARGEST_SEED, START, check_seed, gaussian
from stillhouse.diffusion.prediction import Prediction, denoised, noised, predicted_noise, target
from stillhouse.diffusion.samplers import SAMPLERS, Evaluation, Past, Sampler, find_sampler, interval
from stillhouse.diffusion.sampling_plan import Course, check_interval, check_refresh
from stillhouse.diffusion.schedule import Kind, Schedule, alphas_cumprod, noise_levels
from stillhouse.diffusion.step_cache import Conditioning, CutDenoiser, Denoiser, Features
from stillhouse.diffusion.timestep_grid import CLEAN, Grid, Point, Sigmas, Spacing, grid, grid_at
from stillhouse.diffusion.trajectory import Keep, Trajectory, advance

__all__ = [
    "CLEAN",
    "LARGEST_SEED",
    "NUMPY",
    "SAMPLERS",
    "START",
    "Arrays",
    "Conditioning",
    "Course",
    "CutDenoiser",
    "Denoiser",
    "Evaluation",
    "Features",
    "Grid",
    "Keep",
    "Kind",
    "Past",
    "Point",
    "Prediction",
    "Sampler",
    "Schedule",
    "Sigmas",
    "Spacing",
    "Trajectory",
    "advance",
    "alphas_cumprod",
    "check_interval",
    "check_refresh",
    "check_seed",
    "denoised",
    "find_sampler",
    "gaussian",
    "grid",
    "grid_at",
    "guide",
    "interval",
    "is_guided",
    "noise_levels",
    "noised",
    "predicted_noise",
    "rescale",
    "target",
]
