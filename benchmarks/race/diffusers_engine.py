"""diffusers on torch, as its documentation runs a pipeline on a CPU."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.race.stopwatch import Timed
from benchmarks.race.subject import CHECKPOINT, GUIDANCE, SIDE, TIMESTEP, Picture, initial_noise


class DiffusersEngine:
    """StableDiffusionPipeline with attention by SDPA, torch's default.

    Args:
        precision: dtype of weights and activations. bf16 runs in channels-last layout, in which it is faster.
        is_compiled: whether denoiser and decoder are compiled by torch.compile.
    """

    def __init__(self, precision: Literal["f32", "bf16"] = "f32", *, is_compiled: bool = False) -> None:
        import torch
        from diffusers import DDIMScheduler, StableDiffusionPipeline

        self.precision: str = precision
        self._torch = torch
        self._dtype = torch.float32 if precision == "f32" else torch.bfloat16
        pipeline = StableDiffusionPipeline.from_pretrained(CHECKPOINT, torch_dtype=self._dtype)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
        if precision == "bf16":
            pipeline.unet.to(memory_format=torch.channels_last)
            pipeline.vae.to(memory_format=torch.channels_last)
        compiled: Any = torch.compile if is_compiled else lambda function: function
        self._evaluate = pipeline.unet.forward = Timed(compiled(pipeline.unet.forward))
        self._decode = pipeline.vae.decode = Timed(compiled(pipeline.vae.decode))
        self._pipeline = pipeline

    def generate(self, prompt: str, steps: int) -> Picture:
        """Generate a picture as `Subject.generate` says."""
        noise = self._torch.from_numpy(initial_noise()).to(self._dtype)
        images = self._pipeline(
            prompt,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            height=SIDE,
            width=SIDE,
            latents=noise,
            output_type="np",
        ).images
        return Picture((images[0] * 255).round().astype(np.uint8), self._evaluate.take(), sum(self._decode.take()))

    def predict(self, sample: NDArray[np.float32], states: NDArray[np.float32]) -> NDArray[Any] | None:
        """Evaluate the denoiser as `Subject.predict` says."""
        inputs = [self._torch.from_numpy(array).to(self._dtype) for array in (sample, states)]
        with self._torch.inference_mode():
            output = self._pipeline.unet(inputs[0], TIMESTEP, encoder_hidden_states=inputs[1]).sample
        self._evaluate.take()
        prediction: NDArray[Any] = output.float().numpy()
        return prediction
