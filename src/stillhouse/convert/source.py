"""A diffusers directory as it lies on disk or in the hub's cache, checked before any weights are read."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers

from stillhouse.backends.runtime import first_error_line
from stillhouse.errors import ImportFailed, UnknownModel
from stillhouse.pipelines.manifest import Family

INDEX = "model_index.json"
REDOWNLOAD = "download or save the model again"
FAMILIES: Mapping[str, Family] = {
    "StableDiffusionPipeline": "stable-diffusion",
    "StableDiffusionImg2ImgPipeline": "stable-diffusion",
    "StableDiffusionInpaintPipeline": "stable-diffusion",
    "LatentConsistencyModelPipeline": "stable-diffusion",
    "StableDiffusionXLPipeline": "stable-diffusion-xl",
    "StableDiffusionXLImg2ImgPipeline": "stable-diffusion-xl",
    "StableDiffusionXLInpaintPipeline": "stable-diffusion-xl",
}
CLASSES: Mapping[str, tuple[str, ...]] = {
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
}
IGNORED_COMPONENTS = ("safety_checker", "feature_extractor", "image_encoder")
"""Components that are not taken over: they judge or describe pictures and draw none."""


@dataclass(frozen=True, slots=True)
class Source:
    """A diffusers directory.

    Args:
        name: its hub id, or its directory's name.
        directory: where it lies.
        index: model_index.json.
        family: which inputs its networks take.
    """

    name: str
    directory: Path
    index: Mapping[str, Any]
    family: Family

    @property
    def is_xl(self) -> bool:
        """Whether there are two text encoders."""
        return self.family == "stable-diffusion-xl"

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """Their names."""
        return ("text_encoder", "text_encoder_2") if self.is_xl else ("text_encoder",)

    def config(self, component: str) -> dict[str, Any]:
        """A component's config.json. Raises ImportFailed where it is missing or broken."""
        path = self.directory / component / ("scheduler_config.json" if component == "scheduler" else "config.json")
        return _read_json(path)


def open_source(source: str | Path) -> Source:
    """Find a diffusers directory and check that it is whole and of an architecture that is known.

    Raises:
        UnknownModel: neither a directory nor a hub id that can be reached.
        ImportFailed: something is missing or not known; the message names it.
    """
    directory = _locate(source)
    index = _read_json(directory / INDEX)
    name = str(index.get("_class_name"))
    if name not in FAMILIES:
        raise ImportFailed(f"{directory} is a {name}, which is not known", allowed=", ".join(FAMILIES))
    origin = Path(source).resolve().name if Path(source).is_dir() else str(source)
    opened = Source(origin, directory, index, FAMILIES[name])
    for component, known in CLASSES.items():
        if component.endswith("_2") and not opened.is_xl:
            continue
        _check_component(opened, component, known)
    _check_component(opened, "scheduler", None)
    _check_unet(opened)
    _check_vae(opened.config("vae"))
    return opened


def _locate(source: str | Path) -> Path:
    path = Path(source)
    if (path / INDEX).is_file():
        return path
    if path.exists():
        what = "no diffusers directory: it has no model_index.json" if path.is_dir() else "a file"
        raise ImportFailed(f"{path} is {what}", allowed="a directory that diffusers saved, or a hub id")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise UnknownModel(f"there is no directory {path}", allowed="a diffusers directory, or a hub id owner/name")
    return _download(str(source))


def _download(hub_id: str) -> Path:
    try:
        return Path(diffusers.DiffusionPipeline.download(hub_id))
    except Exception as error:  # the hub's client has a class for each way of failing, and changes them
        raise UnknownModel(
            f"there is no directory {hub_id}, and the hub gave no such model ({first_error_line(str(error))})",
            fix="check the name and the network; or download it elsewhere and give the directory",
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ImportFailed(f"{path} is missing", fix=REDOWNLOAD) from None
    except ValueError as error:
        raise ImportFailed(f"{path} is not JSON: {error}", fix=REDOWNLOAD) from None
    if not isinstance(document, dict):
        raise ImportFailed(f"{path} holds no object", fix=REDOWNLOAD)
    return document


def _check_component(source: Source, component: str, known: tuple[str, ...] | None) -> None:
    _, name = source.index.get(component) or (None, None)
    if name is None:
        what = f"{source.directory} has no {component}"
        raise ImportFailed(what, allowed="whole text-to-image models; a refiner has one text encoder only")
    if known is not None and name not in known:
        raise ImportFailed(f"{component} is a {name}, which is not known", allowed=" or ".join(known))
    if not (source.directory / component).is_dir():
        raise ImportFailed(
            f"{source.directory / component} is missing, though {INDEX} names it",
            fix=REDOWNLOAD,
        )


def _check_unet(source: Source) -> None:
    config = source.config("unet")
    known = {
        "addition_embed_type": (None, "text_time")[source.is_xl],
        "class_embed_type": None,
        "encoder_hid_dim_type": None,
    }
    for setting, value in known.items():
        if config.get(setting) != value:
            raise ImportFailed(f"the unet has {setting} {config.get(setting)!r}", allowed=repr(value))
    latents = source.config("vae").get("latent_channels", 4)
    if config.get("in_channels", 4) not in (latents, 2 * latents + 1):
        raise ImportFailed(
            f"the unet takes {config['in_channels']} channels",
            allowed=f"{latents} latent channels, or {2 * latents + 1} to repaint",
        )


def _check_vae(config: Mapping[str, Any]) -> None:
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        raise ImportFailed("the vae normalises its latents by channel", allowed="one scaling_factor")
