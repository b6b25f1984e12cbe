"""Stillhouse, as a program that imports it."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.race.stopwatch import Timed
from benchmarks.race.subject import GUIDANCE, SIDE, TIMESTEP, Picture, initial_noise
from stillhouse.core import ImageRequest
from stillhouse.pipelines.roles import DENOISER


class StillhouseEngine:
    """A pipeline directory, opened as it is.

    Args:
        directory: the pipeline directory.
        guidance: guidance scale; 1: one row an evaluation.
        cache_interval: as in `ImageRequest`.
        options: further arguments of `stillhouse.load`.
    """

    def __init__(self, directory: Path, guidance: float = GUIDANCE, cache_interval: int = 1, **options: Any) -> None:
        import stillhouse

        self._guidance, self._cache_interval = guidance, cache_interval
        self._pipeline = stillhouse.load(directory, **options)
        component = self._pipeline.manifest.components[DENOISER]
        quantised = "int8, " if "int8" in component.graph else ""
        self.precision = f"{component.backend} {quantised}{options.get('precision') or component.precision}"

    def generate(self, prompt: str, steps: int) -> Picture:
        """Generate a picture as `Subject.generate` says."""
        advance, finish = Timed(self._pipeline.advance), Timed(self._pipeline.finish)
        request = ImageRequest(
            prompt,
            steps=steps,
            guidance=self._guidance,
            cache_interval=self._cache_interval,
            sampler="ddim",
            width=SIDE,
            height=SIDE,
            seed=0,
        )
        trajectory = self._pipeline.start(request, noise=initial_noise()[0])
        while not trajectory.is_done:
            advance([trajectory])
        image = finish(trajectory).image
        return Picture(image, advance.take(), sum(finish.take()))

    def predict(self, sample: NDArray[np.float32], states: NDArray[np.float32]) -> NDArray[Any] | None:
        """Evaluate the denoiser as `Subject.predict` says."""
        if self._pipeline.manifest.step_cache:
            return None  # the whole denoiser would be opened beside its parts
        timesteps = np.full(len(sample), TIMESTEP, np.float32)
        return np.array(self._pipeline.denoise(sample, timesteps, {"encoder_hidden_states": states}))
