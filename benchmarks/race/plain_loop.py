"""A loop of DDIM in NumPy around any denoiser and decoder, as a programmer without a library of pipelines writes it."""

import json
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.race.stopwatch import Timed
from benchmarks.race.subject import CHECKPOINT, GUIDANCE, TIMESTEP, Picture, initial_noise

Evaluate: TypeAlias = Callable[[NDArray[np.float32], int, NDArray[np.float32]], NDArray[np.float32]]
"""Takes latents of two rows, the timestep and the texts of two rows; returns the predicted noise of two rows."""
Decode: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Takes latents [1, 4, 64, 64], divided by the scaling factor; returns pixels [1, 3, 512, 512] in -1 to 1."""
Encode: TypeAlias = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Takes token ids [1, 77], returns the hidden states [1, 77, 768]."""


class PlainLoop:
    """DDIM with classifier-free guidance around three networks.

    Args:
        precision: precision in which the denoiser computes.
        encode, evaluate, decode: the networks.
    """

    def __init__(self, precision: str, encode: Encode, evaluate: Evaluate, decode: Decode) -> None:
        self.precision = precision
        self._encode, self._evaluate, self._decode = encode, Timed(evaluate), Timed(decode)
        self._alphas = _cumulative_alphas()
        self._scaling = _scaling_factor()
        self._tokenize = _open_tokenizer()

    def generate(self, prompt: str, steps: int) -> Picture:
        """Generate a picture as `Subject.generate` says."""
        states = np.concatenate([self._encode(self._tokenize(text)) for text in ("", prompt)])
        latents, gap = initial_noise(), len(self._alphas) // steps
        for step in range(steps):
            timestep = (steps - 1 - step) * gap + 1
            plain, guided = self._evaluate(np.concatenate([latents, latents]), timestep, states)
            noise = plain + GUIDANCE * (guided - plain)
            alpha = self._alphas[timestep]
            earlier = self._alphas[max(timestep - gap, 0)]
            clean = (latents - (1 - alpha) ** 0.5 * noise) / alpha**0.5
            latents = (earlier**0.5 * clean + (1 - earlier) ** 0.5 * noise).astype(np.float32)
        pixels = self._decode(latents / np.float32(self._scaling))[0].transpose(1, 2, 0)
        image = np.clip(pixels * 127.5 + 127.5, 0, 255).round().astype(np.uint8)
        return Picture(image, self._evaluate.take(), sum(self._decode.take()))

    def predict(self, sample: NDArray[np.float32], states: NDArray[np.float32]) -> NDArray[Any] | None:
        """Evaluate the denoiser as `Subject.predict` says."""
        prediction = np.array(self._evaluate(sample, TIMESTEP, states))
        self._evaluate.take()
        return prediction


def _cumulative_alphas() -> NDArray[np.float64]:
    """Return the cumulative products of 1 - beta of the checkpoint's scheduler, float64 [1000]."""
    config = json.loads((CHECKPOINT / "scheduler" / "scheduler_config.json").read_text())
    ends = config["beta_start"] ** 0.5, config["beta_end"] ** 0.5
    alphas: NDArray[np.float64] = np.cumprod(1 - np.linspace(*ends, config["num_train_timesteps"]) ** 2)
    return alphas


def _scaling_factor() -> float:
    return float(json.loads((CHECKPOINT / "vae" / "config.json").read_text())["scaling_factor"])


def _open_tokenizer() -> Callable[[str], NDArray[np.int64]]:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(CHECKPOINT / "tokenizer")

    def tokenize(text: str) -> NDArray[np.int64]:
        ids = tokenizer(text, padding="max_length", max_length=tokenizer.model_max_length, truncation=True)["input_ids"]
        return np.array([ids], np.int64)

    return tokenize
