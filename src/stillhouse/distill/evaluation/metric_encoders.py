"""Encoders that users bring, because their weights cannot ship: CLIP for the CLIP score, Inception for FID."""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stillhouse.backends.runtime import require
from stillhouse.core import Picture
from stillhouse.errors import InvalidRequest
from stillhouse.measure.set_metrics import Features
from stillhouse.pipelines.tokenizers import open_tokenizer

_BATCH = 32
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pictures that CLIP was trained with, where its directory does not say."""


@dataclass(frozen=True, slots=True)
class MetricEncoders:
    """What a user has; None: not that.

    Args:
        clip: scores of pictures, each beside its prompt.
        inception: features of pictures, whose Frechet distance is known as FID.
    """

    clip: Callable[[Sequence[Picture], Sequence[str]], NDArray[np.float64]] | None = None
    inception: Callable[[Sequence[Picture]], Features] | None = None


def open_clip(directory: Path) -> Callable[[Sequence[Picture], Sequence[str]], NDArray[np.float64]]:
    """CLIP scores: 100 max(0, cos) of picture and prompt, Hessel et al. (arXiv 2104.08718), equation 1, with 100 for w.

    Args:
        directory: of a CLIP model as transformers writes it, with tokenizer.json and preprocessor_config.json.

    Returns:
        a function of pictures and as many prompts, to float64 [pictures], from 0 to 100.

    Raises:
        InvalidRequest: no such model.
        RuntimeMissing: torch or transformers is not installed.
    """
    torch, transformers = require("torch"), require("transformers")
    if not (directory / "config.json").is_file():
        raise InvalidRequest(f"there is no CLIP model in {directory}", allowed="a directory with config.json")
    try:
        model = transformers.CLIPModel.from_pretrained(directory, local_files_only=True).eval()
    except Exception as error:
        given = f"{directory} cannot be opened as CLIP: {str(error).splitlines()[0]}"
        raise InvalidRequest(given, allowed="what transformers' CLIPModel saved") from error
    tokenizer, seen = (
        open_tokenizer(directory),
        _ClipPreprocessor.from_directory(directory, model.config.vision_config.image_size),
    )

    def score(pictures: Sequence[Picture], prompts: Sequence[str]) -> NDArray[np.float64]:
        found = []
        for begin in range(0, len(pictures), _BATCH):
            part = slice(begin, begin + _BATCH)
            ids = torch.from_numpy(np.stack([tokenizer(prompt) for prompt in prompts[part]]))
            pixels = torch.from_numpy(np.stack([seen(picture) for picture in pictures[part]]))
            with torch.inference_mode():
                answer = model(input_ids=ids, pixel_values=pixels)
            cosines = (answer.image_embeds * answer.text_embeds).sum(-1)  # both come with length 1
            found.append(100 * cosines.clamp(min=0).double().numpy())
        return np.concatenate(found)

    return score


def open_inception(file: Path) -> Callable[[Sequence[Picture]], Features]:
    """Features of an Inception network in TorchScript, as StyleGAN's authors publish it for FID.

    Args:
        file: it takes uint8 [B, 3, H, W] and `return_features=True`, scales by itself, and gives float [B, features].

    Raises:
        InvalidRequest: no such file, or it holds no such network.
        RuntimeMissing: torch is not installed.
    """
    torch = require("torch")
    if not file.is_file():
        raise InvalidRequest(f"there is no file {file}", allowed="an Inception network in TorchScript")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the format, in which others publish
            network = torch.jit.load(str(file), map_location="cpu").eval()
        with torch.inference_mode():
            shape = tuple(network(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), return_features=True).shape)
    except Exception as error:
        given = f"{file} is no Inception network: {str(error).strip().splitlines()[-1]}"
        raise InvalidRequest(given, allowed="TorchScript of uint8 [B, 3, H, W] and return_features") from error
    if len(shape) != 2 or shape[0] != 2:
        raise InvalidRequest(f"{file} gives {list(shape)} for two pictures", allowed="[2, features]")

    def features(pictures: Sequence[Picture]) -> Features:
        found = []
        for begin in range(0, len(pictures), _BATCH):
            batch = np.stack(pictures[begin : begin + _BATCH]).transpose(0, 3, 1, 2)
            with torch.inference_mode():
                answer = network(torch.from_numpy(np.ascontiguousarray(batch)), return_features=True)
            found.append(answer.double().numpy())
        return np.concatenate(found)

    return features


@dataclass(frozen=True, slots=True)
class _ClipPreprocessor:
    """A picture as CLIP sees it: its shorter side scaled to `size`, the middle cut out, its levels normalised."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_directory(cls, directory: Path, size: int) -> "_ClipPreprocessor":
        file = directory / "preprocessor_config.json"
        told: dict[str, Any] = json.loads(file.read_bytes()) if file.is_file() else {}
        return cls(size, tuple(told.get("image_mean", _MEAN)), tuple(told.get("image_std", _STD)))

    def __call__(self, picture: Picture) -> NDArray[np.float32]:
        height, width = picture.shape[:2]
        scale = self.size / min(height, width)
        size = max(self.size, round(width * scale)), max(self.size, round(height * scale))
        scaled = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
        left, top = (size[0] - self.size) // 2, (size[1] - self.size) // 2
        cut = np.asarray(scaled.crop((left, top, left + self.size, top + self.size)), np.float32) / 255
        levels: NDArray[np.float32] = ((cut - np.array(self.mean)) / np.array(self.std)).astype(np.float32)
        return np.ascontiguousarray(levels.transpose(2, 0, 1))
