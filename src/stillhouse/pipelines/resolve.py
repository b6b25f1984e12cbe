"""Resolves requests: fills in the pipeline's defaults, checks every value, and plans noise levels and guidance."""

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from stillhouse.check import check_integer, check_number
from stillhouse.core import ImageRequest
from stillhouse.diffusion import (
    SamplingPlan,
    TimestepGrid,
    check_cache_interval,
    find_sampler,
    grid_from_timesteps,
    make_grid,
)
from stillhouse.errors import InvalidRequest
from stillhouse.pipelines.families import find_family
from stillhouse.pipelines.families.base import Family
from stillhouse.pipelines.manifest import Distilled, Manifest

T = TypeVar("T")

MAX_SIZE = 8192
MAX_GUIDANCE = 1000
_STUDENT_SAMPLERS = ("ddim", "euler")
"""Samplers that distilled pipelines accept: both take the step that distilled networks were trained with."""
_READERS = {"image": "picture", "mask": "mask"}
IMG2IMG_STRENGTH = 0.8
"""Default strength of a request with an image but no mask, as in diffusers; with a mask the default is 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Resolved:
    """A checked request with every default filled in, and its sampling plan.

    Args:
        request: the request; only image, mask and strength may be None.
        plan: noise levels, sampler and guidance of the picture.
        batch_key: equal for pictures of a pipeline that may share a batch: width and height in pixels, then the values
            of `Family.batch_key`.
    """

    request: ImageRequest
    plan: SamplingPlan
    batch_key: tuple[int, ...]


def resolve(manifest: Manifest, request: ImageRequest) -> Resolved:
    """Fill in every default of a request, check its values against the manifest, and plan its sampling.

    The size defaults to the image's size, or without an image to the manifest's size. Without an image, strength is
    None.

    Raises:
        InvalidRequest: the pipeline cannot serve a value; the message says which values are allowed.
    """
    family = find_family(manifest.family)
    _check_text(request)
    _check_image(manifest, family, request)
    defaults = manifest.defaults
    height, width = (defaults.height, defaults.width) if request.image is None else request.image.shape[:2]
    full = replace(
        request,
        steps=_or(request.steps, defaults.steps),
        guidance=_or(request.guidance, defaults.guidance),
        sampler=_or(request.sampler, defaults.sampler),
        guidance_interval=_or(request.guidance_interval, defaults.guidance_interval),
        cache_interval=_or(request.cache_interval, defaults.cache_interval),
        width=_or(request.width, width),
        height=_or(request.height, height),
        strength=_strength(manifest, request),
    )
    _check_size(manifest, full)
    assert full.width is not None and full.height is not None
    batch_key = (full.width, full.height, *family.batch_key(manifest, full))
    return Resolved(full, _plan(manifest, family, full), batch_key)


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _plan(manifest: Manifest, family: Family, request: ImageRequest) -> SamplingPlan:
    """Check the sampling values of a request whose defaults are filled in, and return its sampling plan."""
    assert request.steps is not None and request.guidance is not None and request.sampler is not None
    assert request.cache_interval is not None
    check_integer("steps", request.steps, 1, manifest.sampling.schedule.train_steps)
    check_number("guidance", request.guidance, 0, MAX_GUIDANCE)
    guidance = family.guidance(manifest, request)
    if manifest.distilled:
        _check_student(manifest.name, manifest.distilled, request)
    check_cache_interval(request.cache_interval)
    if request.cache_interval > 1 and manifest.step_cache is None:
        raise InvalidRequest(
            f"cache_interval is {request.cache_interval} for {manifest.name}, whose denoiser is not split for caching",
            allowed="cache_interval 1",
            fix="make a pipeline that caches features with `stillhouse accelerate`",
        )
    return SamplingPlan(
        grid=_timestep_grid(manifest, family, request),
        sampler=request.sampler,
        prediction=manifest.sampling.prediction,
        guidance=guidance,
        eta=request.eta,
        seed=request.seed,
        cache_interval=request.cache_interval,
    )


def encoded_image_count(manifest: Manifest, request: ImageRequest) -> int:
    """Return how many pictures the autoencoder encodes before the first evaluation of a resolved request, 0 to 2.

    The request's image is encoded, except by an inpainting network at strength 1, which starts at pure noise. An
    inpainting network also encodes the masked image.
    """
    if request.image is None:
        return 0
    if request.mask is None or not find_family(manifest.family).is_inpainting(manifest):
        return 1
    return 1 if request.strength == 1 else 2


def _timestep_grid(manifest: Manifest, family: Family, request: ImageRequest) -> TimestepGrid:
    assert request.steps is not None and request.sampler is not None
    assert request.width is not None and request.height is not None
    distilled, strength = manifest.distilled, request.strength
    schedule = family.schedule(manifest, request.width, request.height)
    if distilled and distilled.timesteps:
        for edit in distilled.edits:
            if edit.strength == strength:
                return grid_from_timesteps(schedule, edit.timesteps)
        grid = grid_from_timesteps(schedule, distilled.timesteps)
    else:
        grid = make_grid(
            schedule,
            request.steps,
            manifest.sampling.spacing,
            manifest.sampling.sigmas,
            steps_offset=manifest.sampling.steps_offset,
            drop_last_level=find_sampler(request.sampler).drops_last_level,
        )
    return grid if strength is None else grid.start_at_strength(strength)


def _check_student(name: str, distilled: Distilled, request: ImageRequest) -> None:
    """Raise InvalidRequest if a distilled pipeline was not trained for a request's guidance, steps, sampler or eta.

    Args:
        name: name of the pipeline, for the error message.
        distilled: what the pipeline was trained for.
        request: the request, with every default filled in.
    """
    least, most = distilled.guidance
    assert request.guidance is not None
    if not least <= request.guidance <= most:
        raise InvalidRequest(
            f"guidance is {request.guidance:g} for {name}", allowed=f"{least:g} to {most:g}, its training range"
        )
    if distilled.timesteps is None:
        return
    if request.steps != len(distilled.timesteps):
        raise InvalidRequest(
            f"steps is {request.steps} for {name}",
            allowed=f"{len(distilled.timesteps)}, which it was distilled to",
            fix="leave the steps out, or use its teacher",
        )
    if request.sampler not in _STUDENT_SAMPLERS:
        raise InvalidRequest(f"sampler is {request.sampler} for {name}", allowed=", ".join(_STUDENT_SAMPLERS))
    if request.eta:
        raise InvalidRequest(
            f"eta is {request.eta:g} for {name}", allowed="eta 0, because a distilled model's steps add no fresh noise"
        )


def _strength(manifest: Manifest, request: ImageRequest) -> float | None:
    """Return the strength with which a request edits its image.

    The strength is the request's or, where that is None, 0.8 without a mask and 1 with a mask. Where `manifest` is of a
    distilled pipeline that was trained for certain strengths, the nearest of these strengths and 1 is returned. For a
    request without an image, the request's strength is returned unchanged, usually None.
    """
    if request.image is None:
        return request.strength
    strength = _or(request.strength, IMG2IMG_STRENGTH if request.mask is None else 1.0)
    if not manifest.distilled or not manifest.distilled.edits:
        return strength
    trained = [*(edit.strength for edit in manifest.distilled.edits), 1.0]
    return min(trained, key=lambda candidate: abs(candidate - strength))


def _check_text(request: ImageRequest) -> None:
    for name in ("prompt", "negative_prompt"):
        text = getattr(request, name)
        if not isinstance(text, str) or (not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)):
            raise InvalidRequest(f"{name} is {text!r}", allowed="a text without surrogates, which UTF-8 cannot encode")


def _check_image(manifest: Manifest, family: Family, request: ImageRequest) -> None:
    image, mask = request.image, request.mask
    for name, array in (("image", image), ("mask", mask)):
        if array is not None and not isinstance(array, np.ndarray):
            raise InvalidRequest(
                f"{name} is {array!r}", allowed="a uint8 array", fix=f"read it with stillhouse.read_{_READERS[name]}"
            )
    for name in ("mask", "strength"):
        if image is None and getattr(request, name) is not None:
            raise InvalidRequest(
                f"the request has {name} without an image", allowed=f"{name} with an image", fix="give an image"
            )
    if mask is None and family.is_inpainting(manifest):
        raise InvalidRequest(
            f"there is no {'image' if image is None else 'mask'} for {manifest.name}, which is an inpainting model",
            allowed="an image and a mask",
            fix="give both, or use a text-to-image model",
        )
    if image is not None and (image.dtype != "uint8" or image.ndim != 3 or image.shape[2] != 3):
        raise InvalidRequest(f"image is {image.dtype} {list(image.shape)}", allowed="uint8 [height, width, 3]")
    if mask is not None and (mask.dtype != "uint8" or mask.ndim != 2):
        raise InvalidRequest(f"mask is {mask.dtype} {list(mask.shape)}", allowed="uint8 [height, width]")
    if image is not None and mask is not None and mask.shape != image.shape[:2]:
        raise InvalidRequest(
            f"the mask is {_size(mask.shape)}, but the image is {_size(image.shape)}",
            allowed="a mask of the image's size",
            fix="resize the mask to the image",
        )
    if request.strength is not None:
        check_number("strength", request.strength, 0, 1)


def _check_size(manifest: Manifest, request: ImageRequest) -> None:
    assert request.width is not None and request.height is not None
    unit = manifest.granularity
    for name, size in (("width", request.width), ("height", request.height)):
        check_integer(name, size, 1, MAX_SIZE)
        if size % unit:
            below, above = size // unit * unit, (size // unit + 1) * unit
            near = f"{below} or {above}" if below else f"{above}"
            resize = " and resize the image" if request.image is not None else ""
            raise InvalidRequest(f"{name} is {size}", allowed=f"multiples of {unit}", fix=f"try {near}{resize}")
    if request.image is not None and request.image.shape[:2] != (request.height, request.width):
        raise InvalidRequest(
            f"the image is {_size(request.image.shape)}, but the request's size is {request.width}x{request.height}",
            allowed="the image's own size",
            fix="leave the size out, or resize the image",
        )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
