"""Diffusers directories as import sources, on disk or in the hub's cache, checked before any weights are read."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers

from stillhouse.backends.runtime import first_error_line
from stillhouse.errors import ImportFailed, UnknownModel

INDEX = "model_index.json"
REDOWNLOAD = "download or save the model again"
FAMILIES: Mapping[str, str] = {
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
"""Components that are not imported, because they check or describe pictures and generate none."""


@dataclass(frozen=True, slots=True)
class Source:
    """A diffusers directory.

    Args:
        name: hub id, or name of the directory.
        directory: on this machine.
        index: content of model_index.json.
        family: name of the pipeline family.
    """

    name: str
    directory: Path
    index: Mapping[str, Any]
    family: str

    @property
    def is_xl(self) -> bool:
        """Whether the source is Stable Diffusion XL."""
        return self.family == "stable-diffusion-xl"

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """Roles of the text encoders."""
        return ("text_encoder", "text_encoder_2") if self.is_xl else ("text_encoder",)

    def config(self, component: str) -> dict[str, Any]:
        """Return a component's configuration. Raises ImportFailed where it is missing or broken."""
        path = self.directory / component / ("scheduler_config.json" if component == "scheduler" else "config.json")
        return _read_json(path)


def open_source(source: str | Path) -> Source:
    """Find a diffusers directory and check that it is complete and of a supported architecture.

    Args:
        source: a directory, or a hub id `owner/name`, which is downloaded.

    Raises:
        UnknownModel: there is no such directory, and no such hub id can be reached.
        ImportFailed: a component is missing or not supported; the message names it.
    """
    directory = _locate(source)
    index = _read_json(directory / INDEX)
    name = str(index.get("_class_name"))
    if name not in FAMILIES:
        raise ImportFailed(f"{directory} is a {name}, which is not known", allowed=", ".join(FAMILIES))
    origin = Path(source).resolve().name if Path(source).is_dir() else str(source)
    opened = Source(origin, directory, index, FAMILIES[name])
    for component, classes in CLASSES.items():
        if component.endswith("_2") and not opened.is_xl:
            continue
        _check_component(opened, component, classes)
    _check_component(opened, "scheduler", None)
    _check_unet(opened)
    _check_vae(opened.config("vae"))
    return opened


def _locate(source: str | Path) -> Path:
    path = Path(source)
    if (path / INDEX).is_file():
        return path
    if path.exists():
        kind = "no diffusers directory: it has no model_index.json" if path.is_dir() else "a file"
        raise ImportFailed(f"{path} is {kind}", allowed="a directory that diffusers saved, or a hub id")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise UnknownModel(f"there is no directory {path}", allowed="a diffusers directory, or a hub id owner/name")
    return _download(str(source))


def _download(hub_id: str) -> Path:
    try:
        return Path(diffusers.DiffusionPipeline.download(hub_id))
    except Exception as error:  # the hub's client raises many classes, which change between versions
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


def _check_component(source: Source, component: str, classes: tuple[str, ...] | None) -> None:
    _, name = source.index.get(component) or (None, None)
    if name is None:
        given = f"{source.directory} has no {component}"
        raise ImportFailed(given, allowed="whole text-to-image models; a refiner has one text encoder only")
    if classes is not None and name not in classes:
        raise ImportFailed(f"{component} is a {name}, which is not known", allowed=" or ".join(classes))
    if not (source.directory / component).is_dir():
        raise ImportFailed(
            f"{source.directory / component} is missing, though {INDEX} names it",
            fix=REDOWNLOAD,
        )


def _check_unet(source: Source) -> None:
    config = source.config("unet")
    supported = {
        "addition_embed_type": (None, "text_time")[source.is_xl],
        "class_embed_type": None,
        "encoder_hid_dim_type": None,
    }
    for setting, value in supported.items():
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
