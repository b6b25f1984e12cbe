"""Optional encoders whose weights do not ship with the package: CLIP for the CLIP score, Inception for FID."""

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
"""Mean and standard deviation of CLIP's training pictures, used where a model has no preprocessor_config.json."""


@dataclass(frozen=True, slots=True)
class MetricEncoders:
    """Encoders whose weights the user supplies; None: not supplied.

    Args:
        clip: maps pictures and their prompts to CLIP scores, float64 [pictures].
        inception: maps pictures to Inception features, whose Frechet distance is the FID.
    """

    clip: Callable[[Sequence[Picture], Sequence[str]], NDArray[np.float64]] | None = None
    inception: Callable[[Sequence[Picture]], Features] | None = None


def open_clip(directory: Path) -> Callable[[Sequence[Picture], Sequence[str]], NDArray[np.float64]]:
    """Open a CLIP model for the CLIP score: 100 max(0, cos), Hessel et al. (arXiv 2104.08718), equation 1 with w = 100.

    Args:
        directory: directory of a CLIP model as transformers saves it, with tokenizer.json and
            preprocessor_config.json.

    Returns:
        a function that maps pictures and one prompt for each of them to scores, float64 [pictures], from 0 to 100.

    Raises:
        InvalidRequest: the directory has no CLIP model.
        RuntimeMissing: torch or transformers is not installed.
    """
    torch, transformers = require("torch"), require("transformers")
    if not (directory / "config.json").is_file():
        raise InvalidRequest(f"there is no CLIP model in {directory}", allowed="a directory with config.json")
    try:
        model = transformers.CLIPModel.from_pretrained(directory, local_files_only=True).eval()
    except Exception as error:
        problem = f"{directory} cannot be opened as CLIP: {str(error).splitlines()[0]}"
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
            cosines = (output.image_embeds * output.text_embeds).sum(-1)  # CLIP returns normalised embeddings
            scores.append(100 * cosines.clamp(min=0).double().numpy())
        return np.concatenate(scores)

    return score


def open_inception(file: Path) -> Callable[[Sequence[Picture]], Features]:
    """Open an Inception network in TorchScript, in the form that StyleGAN's authors publish for FID.

    Args:
        file: TorchScript file. Its network takes uint8 [B, 3, H, W] and `return_features=True`, resizes the inputs
            itself, and returns float [B, features].

    Returns:
        a function that maps pictures to features, float64 [pictures, features].

    Raises:
        InvalidRequest: the file does not exist, or its network is not such an Inception network.
        RuntimeMissing: torch is not installed.
    """
    torch = require("torch")
    if not file.is_file():
        raise InvalidRequest(f"there is no file {file}", allowed="an Inception network in TorchScript")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch deprecates TorchScript
            network = torch.jit.load(str(file), map_location="cpu").eval()
        with torch.inference_mode():
            shape = tuple(network(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), return_features=True).shape)
    except Exception as error:
        problem = f"{file} is not an Inception network: {str(error).strip().splitlines()[-1]}"
        raise InvalidRequest(
            problem, allowed="TorchScript with the inputs uint8 [B, 3, H, W] and return_features"
        ) from error
    if len(shape) != 2 or shape[0] != 2:
        raise InvalidRequest(f"{file} returns the shape {list(shape)} for two pictures", allowed="[2, features]")

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
    """Preprocess pictures for CLIP: resize the shorter side to `size`, crop the centre, and normalise the values."""

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
