"""stable-diffusion.cpp by its Python binding, compiled for this machine."""

from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.race.subject import GUIDANCE, SIDE, SINGLE_FILE, Picture


class SdcppEngine:
    """stable-diffusion.cpp with the Euler sampler, since it has no DDIM, and with noise of its own.

    Args:
        weight_type: type of the weights in memory: f16, q8_0.
        threads: number of threads.
    """

    def __init__(self, weight_type: str, threads: int = 2) -> None:
        from stable_diffusion_cpp import StableDiffusion

        self.precision = weight_type
        self._engine = StableDiffusion(
            model_path=str(SINGLE_FILE),
            wtype=weight_type,
            n_threads=threads,
            diffusion_flash_attn=True,
            diffusion_conv_direct=True,
            vae_conv_direct=True,
            verbose=False,
        )

    def generate(self, prompt: str, steps: int) -> Picture:
        """Generate a picture as `Subject.generate` says."""
        ends = [perf_counter()]  # the binding calls back after each step, and in some versions before the first, too
        images = self._engine.generate_image(
            prompt=prompt,
            width=SIDE,
            height=SIDE,
            sample_steps=steps,
            cfg_scale=GUIDANCE,
            sample_method="euler",
            seed=0,
            progress_callback=lambda step, count, seconds: ends.append(perf_counter()),
        )
        decoding = perf_counter() - ends[-1]
        return Picture(np.asarray(images[0]), tuple(np.diff(ends[-steps - 1 :]).tolist()), decoding)

    def predict(self, sample: NDArray[np.float32], states: NDArray[np.float32]) -> NDArray[Any] | None:
        """Return None: the interface has no single evaluation."""
        return None
