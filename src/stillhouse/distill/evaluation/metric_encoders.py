"""Encoders for CLIP score (CLIP) and FID (Inception), whose weights the user supplies."""

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
"""Mean and standard deviation of the RGB values of CLIP's training pictures, from 0 to 1.

These values are used where a CLIP model has no preprocessor_config.json."""


@dataclass(frozen=True, slots=True)
class MetricEncoders:
    """Encoders for CLIP score and FID; None where the user does not supply the weights.

    Args:
        clip: maps pictures and one prompt for each of them to CLIP scores, float64 [pictures], from 0 to 100.
        inception: maps pictures to Inception features, float64 [pictures, features]; their Frechet distance is the FID.
    """

    clip: Callable[[Sequence[Picture], Sequence[str]], NDArray[np.float64]] | None = None
    inception: Callable[[Sequence[Picture]], Features] | None = None


def open_clip(directory: Path) -> Callable[[Sequence[Picture], Sequence[str]], NDArray[np.float64]]:
    """Open a CLIP model and return a function that computes CLIP scores.

    The score is 100 * max(0, cosine of image and text embedding): Hessel et al. (arXiv 2104.08718), equation 1, w 100.

    Args:
        directory: directory of a CLIP model as transformers saves it, with tokenizer.json and, unless the model has
            CLIP's usual mean and standard deviation, preprocessor_config.json.

    Returns:
        a function that maps pictures and one prompt for each of them to scores, float64 [pictures], from 0 to 100.

    Raises:
        InvalidRequest: the directory has no CLIP model, or the model cannot be opened.
        RuntimeMissing: torch or transformers is not installed.
    """
    torch, transformers = require("torch"), require("transformers")
    if not (directory / "config.json").is_file():
        raise InvalidRequest(
            f"there is no CLIP model in {directory}", allowed="a directory that CLIPModel.save_pretrained wrote"
        )
    try:
        model = transformers.CLIPModel.from_pretrained(directory, local_files_only=True).eval()
    except Exception as error:
        problem = f"{directory} cannot be opened as a CLIP model: {str(error).splitlines()[0]}"
        raise InvalidRequest(problem, allowed="a directory that CLIPModel.save_pretrained wrote") from error
    tokenizer = open_tokenizer(directory)
    preprocess = _ClipPreprocessor.from_directory(directory, model.config.vision_config.image_size)

    def score(pictures: Sequence[Picture], prompts: Sequence[str]) -> NDArray[np.float64]:
        scores = []
        for start in range(0, len(pictures), _BATCH):
            part = slice(start, start + _BATCH)
            ids = torch.from_numpy(np.stack([tokenizer(prompt) for prompt in prompts[part]]))
            pixels = torch.from_numpy(np.stack([preprocess(picture) for picture in pictures[part]]))
            with torch.inference_mode():
                output = model(input_ids=ids, pixel_values=pixels)
            # The dot product is the cosine similarity, because CLIP returns embeddings of length 1.
            cosines = (output.image_embeds * output.text_embeds).sum(-1)
            scores.append(100 * cosines.clamp(min=0).double().numpy())
        return np.concatenate(scores)

    return score


def open_inception(file: Path) -> Callable[[Sequence[Picture]], Features]:
    """Open an Inception network in TorchScript, as StyleGAN's authors publish it, and return a function for features.

    Args:
        file: TorchScript file of a network that takes uint8 [B, 3, H, W] and `return_features=True`, resizes these
            pictures, and returns float [B, features].

    Returns:
        a function that maps pictures to features, float64 [pictures, features].

    Raises:
        InvalidRequest: the file does not exist, or its network does not take these inputs or return this shape.
        RuntimeMissing: torch is not installed.
    """
    torch = require("torch")
    if not file.is_file():
        raise InvalidRequest(f"there is no file {file}", allowed="an Inception network in TorchScript")
    try:
        with warnings.catch_warnings():
            # torch warns that TorchScript is deprecated, but the user of a published file cannot change its format.
            warnings.simplefilter("ignore", DeprecationWarning)
            network = torch.jit.load(str(file), map_location="cpu").eval()
        with torch.inference_mode():
            shape = tuple(network(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), return_features=True).shape)
    except Exception as error:
        problem = f"{file} is not an Inception network: {str(error).strip().splitlines()[-1]}"
        raise InvalidRequest(
            problem, allowed="a TorchScript network with the inputs uint8 [B, 3, H, W] and return_features"
        ) from error
    if len(shape) != 2 or shape[0] != 2:
        problem = f"{file} is not an Inception network for FID: it returns the shape {list(shape)} for two pictures"
        raise InvalidRequest(problem, allowed="a network that returns the shape [2, features]")

    def features(pictures: Sequence[Picture]) -> Features:
        outputs = []
        for start in range(0, len(pictures), _BATCH):
            batch = np.stack(pictures[start : start + _BATCH]).transpose(0, 3, 1, 2)
            with torch.inference_mode():
                output = network(torch.from_numpy(np.ascontiguousarray(batch)), return_features=True)
            outputs.append(output.double().numpy())
        return np.concatenate(outputs)

    return features


@dataclass(frozen=True, slots=True)
class _ClipPreprocessor:
    """Converter of pictures to inputs of CLIP, float32 [3, size, size].

    The shorter side is resized to `size`, the centre is cropped, and the values are normalised.

    Args:
        size: height and width of the inputs in pixels.
        mean, std: mean and standard deviation of the RGB values for the normalisation, from 0 to 1.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_directory(cls, directory: Path, size: int) -> "_ClipPreprocessor":
        file = directory / "preprocessor_config.json"
        config: dict[str, Any] = json.loads(file.read_bytes()) if file.is_file() else {}
        return cls(size, tuple(config.get("image_mean", _MEAN)), tuple(config.get("image_std", _STD)))

    def __call__(self, picture: Picture) -> NDArray[np.float32]:
        height, width = picture.shape[:2]
        scale = self.size / min(height, width)
        size = max(self.size, round(width * scale)), max(self.size, round(height * scale))
        resized = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
        left, top = (size[0] - self.size) // 2, (size[1] - self.size) // 2
        cropped = np.asarray(resized.crop((left, top, left + self.size, top + self.size)), np.float32) / 255
        values: NDArray[np.float32] = ((cropped - np.array(self.mean)) / np.array(self.std)).astype(np.float32)
        return np.ascontiguousarray(values.transpose(2, 0, 1))
