"""Sampling variants: other samplers, fewer steps, guidance in part of the steps, cached features (DeepCache).

Each kind of variant is a search axis: a list of settings (levels), ordered from the least to the largest change. The
search finds the largest acceptable change on each axis, then combines the axes, cheapest combination first.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from stillhouse.accelerate.records.candidate import PIPELINE, Candidate
from stillhouse.core import ImageRequest
from stillhouse.pipelines.families import find_family
from stillhouse.pipelines.manifest import Defaults, Manifest
from stillhouse.pipelines.resolve import resolve

CACHED_STEP_COST = 0.2
"""Estimated cost of a step with cached features relative to a full step. Only the order of measurements depends on
the estimate.
"""
_MIN_STEPS = 4
_STEP_SHARES = (0.5, 0.35, 0.28, 0.23)
_GUIDANCE_INTERVALS = ((0.0, 0.8), (0.0, 0.6), (0.0, 0.45))
_CACHE_INTERVALS = (2, 3)
_FEW_STEP_SAMPLER = "dpmpp_2m"
_OTHER_SAMPLERS = ("unipc", "ddim")


@dataclass(frozen=True, slots=True)
class SearchAxis:
    """One kind of sampling option to search.

    Args:
        name: name of the option: steps, cache_interval or guidance.
        levels: settings to try, each as sampling options by name, ordered from the least to the largest change.
    """

    name: str
    levels: tuple[Mapping[str, str], ...]


def variant_candidate(options: Mapping[str, str]) -> Candidate:
    """Return the candidate for a whole pipeline with the given sampling options.

    Args:
        options: changed sampling options by name, values as text; empty: the pipeline's own options.
    """
    return Candidate(PIPELINE, "stillhouse", "sampling", "f32", dict(options))


def list_search_axes(manifest: Manifest, can_cache: bool) -> list[SearchAxis]:
    """Return the kinds of sampling options to search for a pipeline, each with the settings to try.

    The result is empty for a student that was distilled for fixed timesteps, because such a student supports no other
    steps or samplers and no feature caching. `can_cache`: whether the denoiser supports feature caching.
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
    if manifest.defaults.guidance > 1 and not find_family(manifest.family).takes_guidance(manifest):
        axes.append(
            SearchAxis("guidance", tuple({"guidance_interval": f"{a:g}-{b:g}"} for a, b in _GUIDANCE_INTERVALS))
        )
    return [axis for axis in axes if axis.levels]


def other_samplers(options: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
    """Yield a copy of sampling options for each sampler of `_OTHER_SAMPLERS`, except the sampler already in use."""
    for sampler in _OTHER_SAMPLERS:
        if sampler != options.get("sampler"):
            yield {**options, "sampler": sampler}


def combine_levels(passing: Mapping[str, Sequence[Mapping[str, str]]]) -> list[Mapping[str, str]]:
    """Return all combinations of sampling options with at most one setting of each kind, except the empty combination.

    Args:
        passing: the settings to combine, as options by name, for each kind (search axis), such as "steps".
    """
    choices = [[{}, *levels] for levels in passing.values()]
    merged = [{name: value for part in parts for name, value in part.items()} for parts in product(*choices)]
    return [options for options in merged if options]


def request_fields(options: Mapping[str, str]) -> dict[str, object]:
    """Convert sampling options, whose values are text, to values for the fields of an `ImageRequest`, by name.

    Options other than steps, sampler, guidance_interval and cache_interval are ignored.

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
    """Return a copy of a pipeline's default settings with the sampling options of a candidate."""
    return replace(defaults, **request_fields(candidate.options))  # type: ignore[arg-type]


def variant_cost(manifest: Manifest, options: Mapping[str, str]) -> float:
    """Return the estimated cost of one picture: the number of rows (batch entries) that the denoiser computes for it.

    A row of a step with cached features counts CACHED_STEP_COST.

    Args:
        manifest: manifest of the pipeline.
        options: changed sampling options by name.
    """
    cache_interval = int(options.get("cache_interval", "1"))
    fields = request_fields({name: value for name, value in options.items() if name != "cache_interval"})
    plan = resolve(manifest, ImageRequest("", **fields)).plan  # type: ignore[arg-type]
    return sum(rows * (CACHED_STEP_COST if index % cache_interval else 1.0) for index, rows in enumerate(plan.rows))
