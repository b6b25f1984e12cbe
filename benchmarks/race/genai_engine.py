"""OpenVINO GenAI's Text2ImagePipeline, in C++ without torch."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.race.subject import GUIDANCE, SIDE, Picture, initial_noise


class GenaiEngine:
    """A Text2ImagePipeline with DDIM.

    Args:
        directory: directory that `genai_directory` wrote.
        is_static: whether the pipeline is reshaped to one picture of 512x512 before it is compiled, as its samples do
            for speed; otherwise it is opened as it comes.
        step_cache: whether TaylorSeer's prediction of evaluations is on, where the installed version has it.
    """

    def __init__(self, directory: Path, *, is_static: bool, step_cache: bool = False) -> None:
        import openvino_genai

        if is_static:
            pipeline = openvino_genai.Text2ImagePipeline(str(directory))
            pipeline.reshape(1, SIDE, SIDE, GUIDANCE)
            pipeline.compile("CPU")
        else:
            pipeline = openvino_genai.Text2ImagePipeline(str(directory), "CPU")
        scheduler = str(directory / "scheduler" / "scheduler_config.json")
        pipeline.set_scheduler(openvino_genai.Scheduler.from_config(scheduler, openvino_genai.Scheduler.Type.DDIM))
        if step_cache:
            config = pipeline.get_generation_config()
            config.taylorseer_config = openvino_genai.TaylorSeerCacheConfig()
            pipeline.set_generation_config(config)
        self._pipeline = pipeline
        self.precision = "engine's default"

    def generate(self, prompt: str, steps: int) -> Picture:
        """Generate a picture as `Subject.generate` says."""
        images = self._pipeline.generate(
            prompt,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            width=SIDE,
            height=SIDE,
            generator=noise_generator(initial_noise()),
        )
        metrics = self._pipeline.get_performance_metrics()
        evaluation, decoding = metrics.get_unet_infer_duration().mean, metrics.get_vae_decoder_infer_duration()
        return Picture(np.array(images.data[0]), (evaluation / 1000,), decoding / 1000)

    def predict(self, sample: NDArray[np.float32], states: NDArray[np.float32]) -> NDArray[Any] | None:
        """Return None: the interface has no single evaluation."""
        return None


def noise_generator(noise: NDArray[np.float32]) -> Any:
    """Return a generator of OpenVINO GenAI that draws this noise.

    Args:
        noise: float32 [1, channels, height, width].
    """
    import openvino
    import openvino_genai

    class Noise(openvino_genai.Generator):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._next = 0

        def next(self) -> float:
            self._next += 1
            return float(noise.flat[(self._next - 1) % noise.size])

        def randn_tensor(self, shape: Any) -> Any:
            return openvino.Tensor(noise.reshape(list(shape)))

        def seed(self, seed: int) -> None:
            self._next = 0

    return Noise()
