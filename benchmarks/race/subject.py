"""The contract of the engines that take part: each generates the same picture from the same checkpoint.

The checkpoint has the sizes of Stable Diffusion 1.5 and random weights. Every engine starts from the same noise, takes
DDIM's steps with classifier-free guidance (two rows an evaluation) and decodes 512x512 pixels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

BUILD = Path(__file__).parents[2] / "build" / "race"
CHECKPOINT = BUILD / "sd15" / "checkpoint"
"""The checkpoint as diffusers saves it, in half precision."""
PIPELINE = BUILD / "sd15" / "pipeline"
"""The checkpoint as `stillhouse import` leaves it."""
ACCELERATED = BUILD / "accelerated"
"""The pipeline as `stillhouse accelerate` leaves it."""
CACHED = BUILD / "cached"
"""The accelerated pipeline with a denoiser that is split for step caching."""
STUDENT, STUDENT_TINY = BUILD / "student", BUILD / "student-tiny"
"""The accelerated pipeline opened for one row, as for a student; the second one with a tiny decoder."""
GENAI, GENAI_INT8 = BUILD / "genai", BUILD / "genai-int8"
"""Directories that OpenVINO GenAI reads; the second one with int8 weights."""
SINGLE_FILE = BUILD / "sd15.safetensors"
"""The checkpoint in the layout of its first authors, which stable-diffusion.cpp reads."""

SIDE, DOWNSCALE, CHANNELS, TOKENS, WIDTH = 512, 8, 4, 77, 768
GUIDANCE = 7.5
TIMESTEP = 500
"""Timestep of `Subject.predict`."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture and where its time went.

    Args:
        image: uint8 [512, 512, 3].
        evaluations: seconds of each evaluation of the denoiser; of all of them the mean, where an engine reports no
            more.
        decoding: seconds of the decoder; None: unknown.
    """

    image: NDArray[np.uint8]
    evaluations: tuple[float, ...]
    decoding: float | None = None


class Subject(Protocol):
    """An engine that is open."""

    precision: str
    """Precision in which the denoiser computes, as the engine says."""

    def generate(self, prompt: str, steps: int) -> Picture:
        """Generate the picture of `initial_noise` for a prompt."""

    def predict(self, sample: NDArray[np.float32], states: NDArray[np.float32]) -> NDArray[Any] | None:
        """Return the denoiser's output for latents [2, 4, 64, 64] and texts [2, 77, 768] at TIMESTEP.

        None where the engine's interface does not allow a single evaluation.
        """


def initial_noise(side: int = SIDE) -> NDArray[np.float32]:
    """Return the noise of every picture of so many pixels a side, float32 [1, 4, side / 8, side / 8]."""
    shape = (1, CHANNELS, side // DOWNSCALE, side // DOWNSCALE)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def probe_inputs() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return latents and texts for `Subject.predict`."""
    random = np.random.default_rng(1)
    shapes = (2, CHANNELS, SIDE // DOWNSCALE, SIDE // DOWNSCALE), (2, TOKENS, WIDTH)
    sample, states = (random.standard_normal(shape).astype(np.float32) for shape in shapes)
    return sample, states
