"""Sampling variants: other samplers, fewer steps, guidance in part of the steps, cached features.

Each search axis is ordered from conservative to aggressive. The search finds the most aggressive acceptable level of
each axis, then combines them, cheapest first.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from stillhouse.accelerate.records.candidate import PIPELINE, Candidate
from stillhouse.core import ImageRequest
from stillhouse.pipelines.manifest import Defaults, Manifest
from stillhouse.pipelines.resolve import resolve

CACHED_STEP_COST = 0.2
"""Estimated cost of a cached step relative to a full one; it only orders candidates before they are measured."""
_MIN_STEPS = 4
_STEP_SHARES = (0.5, 0.35, 0.28, 0.23)
_GUIDANCE_INTERVALS = ((0.0, 0.8), (0.0, 0.6), (0.0, 0.45))
_CACHE_INTERVALS = (2, 3)
_FEW_STEP_SAMPLER = "dpmpp_2m"
_OTHER_SAMPLERS = ("unipc", "ddim")


@dataclass(frozen=True, slots=True)
class SearchAxis:
    """Levels of one kind of variant as sampling options, ordered from conservative to aggressive."""

    name: str
    levels: tuple[Mapping[str, str], ...]


def variant_candidate(options: Mapping[str, str]) -> Candidate:
    """Return the candidate of these sampling options; empty options: the pipeline's own sampling."""
    return Candidate(PIPELINE, "stillhouse", "sampling", "f32", dict(options))


def list_search_axes(manifest: Manifest, can_cache: bool) -> list[SearchAxis]:
    """Return the applicable search axes of a pipeline.

    A student distilled for fixed timesteps has no search axes: the student supports no other steps or samplers, and its
    denoiser cannot be split.

    Args:
        manifest: manifest of the pipeline.
        can_cache: whether the denoiser supports feature caching.
    """
    if manifest.distilled and manifest.distilled.timesteps:
        return []
    steps = manifest.defaults.steps
    counts = sorted({max(_MIN_STEPS, round(share * steps)) for share in _STEP_SHARES} - {steps}, reverse=True)
    axes = [SearchAxis("steps", tuple({"sampler": _FEW_STEP_SAMPLER, "steps": str(n)} for n in counts if n < steps))]
    if can_cache:
        axes.append(
            SearchAxis("cache_interval", tuple({"cache_interval": str(interval)} for interval in _CACHE_INTERVALS))
        )
    if manifest.defaults.guidance > 1 and not manifest.guidance_channels:
        axes.append(
            SearchAxis("guidance", tuple({"guidance_interval": f"{a:g}-{b:g}"} for a, b in _GUIDANCE_INTERVALS))
        )
    return [axis for axis in axes if axis.levels]


def other_samplers(options: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
    """Yield the options with each of the other samplers."""
    for sampler in _OTHER_SAMPLERS:
        if sampler != options.get("sampler"):
            yield {**options, "sampler": sampler}


def combine_levels(passing: Mapping[str, Sequence[Mapping[str, str]]]) -> list[Mapping[str, str]]:
    """Return all combinations of at most one level of each axis, without the empty one."""
    choices = [[{}, *levels] for levels in passing.values()]
    merged = [{name: value for part in parts for name, value in part.items()} for parts in product(*choices)]
    return [options for options in merged if options]


def request_fields(options: Mapping[str, str]) -> dict[str, object]:
    """Return sampling options as fields of an `ImageRequest`; options that are no request fields are ignored.

    >>> request_fields({"steps": "12", "guidance_interval": "0-0.6"})
    {'steps': 12, 'guidance_interval': (0.0, 0.6)}
    """
    fields: dict[str, object] = {}
    for name, value in options.items():
        if name == "guidance_interval":
            begin, _, end = value.partition("-")
            fields[name] = (float(begin), float(end))
        elif name in ("steps", "cache_interval"):
            fields[name] = int(value)
        elif name == "sampler":
            fields[name] = value
    return fields


def apply_variant(candidate: Candidate, defaults: Defaults) -> Defaults:
    """Return the pipeline's defaults with the candidate's sampling options."""
    return replace(defaults, **request_fields(candidate.options))  # type: ignore[arg-type]


def variant_cost(manifest: Manifest, options: Mapping[str, str]) -> float:
    """Return the number of denoiser rows of one picture; rows of cached steps count CACHED_STEP_COST."""
    cache_interval = int(options.get("cache_interval", "1"))
    fields = request_fields({name: value for name, value in options.items() if name != "cache_interval"})
    plan = resolve(manifest, ImageRequest("", **fields)).plan  # type: ignore[arg-type]
    return sum(rows * (CACHED_STEP_COST if index % cache_interval else 1.0) for index, rows in enumerate(plan.rows))
