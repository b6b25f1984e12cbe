"""Sampling variants: other samplers, fewer steps, guidance in part of the steps, cached features (DeepCache).

Each kind of variant is a search axis: a list of settings (levels), ordered from the least to the largest change. A
variant has one setting of each axis, and may name the networks with which it runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from stillhouse.accelerate.records.candidate import PIPELINE, Candidate
from stillhouse.core import ImageRequest
from stillhouse.diffusion import SamplingPlan
from stillhouse.errors import InvalidRequest
from stillhouse.pipelines.families import find_family
from stillhouse.pipelines.manifest import Defaults, Manifest
from stillhouse.pipelines.resolve import resolve

CACHED_STEP_COST = 0.2
"""Estimated cost of a step with cached features relative to a full step. Only the order of measurements depends on
the estimate.
"""
_MIN_STEPS = 4
_STEP_SHARES = (0.7, 0.5, 0.4, 0.34, 0.28, 0.23, 0.2, 0.17, 0.14, 0.11)
_GUIDANCE_INTERVALS = ((0.0, 0.8), (0.0, 0.6), (0.0, 0.45))
_CACHE_INTERVALS = (2, 3)
_FEW_STEP_SAMPLERS = ("ddim", "dpmpp_2m", "unipc")
"""Samplers that are tried with few steps: first order, second order, and second order with a corrector. In our
measurements of the embedded model, the first order kept more pictures correct at 4 to 6 steps than the second."""
_SAMPLING_OPTIONS = ("sampler", "steps", "guidance_interval", "cache_interval")


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
    levels = [{"sampler": name, "steps": str(n)} for n in counts if n < steps for name in _FEW_STEP_SAMPLERS]
    axes = [SearchAxis("steps", tuple(levels))]
    if can_cache:
        axes.append(
            SearchAxis("cache_interval", tuple({"cache_interval": str(interval)} for interval in _CACHE_INTERVALS))
        )
    if manifest.defaults.guidance > 1 and not find_family(manifest.family).takes_guidance(manifest):
        axes.append(
            SearchAxis("guidance", tuple({"guidance_interval": f"{a:g}-{b:g}"} for a, b in _GUIDANCE_INTERVALS))
        )
    return [axis for axis in axes if axis.levels]


def list_variants(manifest: Manifest, can_cache: bool) -> list[Mapping[str, str]]:
    """Return the sampling options of all variants: one setting of each axis, or the pipeline's own, in every way.

    Of options with equal plans, such as guidance intervals that end between the same two steps, one is returned.
    Options that the pipeline refuses are left out, and so are its own.

    Args:
        manifest: manifest of the pipeline.
        can_cache: whether the denoiser supports feature caching.
    """
    choices: list[Sequence[Mapping[str, str]]] = [({}, *axis.levels) for axis in list_search_axes(manifest, can_cache)]
    variants: dict[object, Mapping[str, str]] = {_plan_key(manifest, {}): {}}
    for parts in product(*choices):
        options = {name: value for part in parts for name, value in part.items()}
        try:
            variants.setdefault(_plan_key(manifest, options), options)
        except InvalidRequest:
            continue
    return [options for options in variants.values() if options]


def sampling_plan(manifest: Manifest, options: Mapping[str, str], request: ImageRequest | None = None) -> SamplingPlan:
    """Return the plan (noise levels, guidance and cached evaluations) of a picture with changed sampling options.

    The manifest need not have the graphs for feature caching.

    Args:
        manifest: manifest of the pipeline.
        options: changed sampling options by name.
        request: the picture's request; None: a request without a prompt.

    Raises:
        InvalidRequest: the pipeline refuses the options.
    """
    fields = request_fields(options)
    cache_interval = fields.pop("cache_interval", 1)
    plan = resolve(manifest, replace(request or ImageRequest(""), **fields)).plan  # type: ignore[arg-type]
    return replace(plan, cache_interval=cache_interval)  # type: ignore[arg-type]


def _plan_key(manifest: Manifest, options: Mapping[str, str]) -> object:
    plan = sampling_plan(manifest, options)
    return plan.sampler, plan.grid, plan.rows, plan.cache_interval


def split_options(options: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the sampling options of a pipeline candidate, and the names of its networks by role.

    >>> split_options({"steps": "8", "denoiser": "openvino f32, bf16"})
    ({'steps': '8'}, {'denoiser': 'openvino f32, bf16'})
    """
    sampling = {name: value for name, value in options.items() if name in _SAMPLING_OPTIONS}
    return sampling, {name: value for name, value in options.items() if name not in _SAMPLING_OPTIONS}


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
    plan = sampling_plan(manifest, options)
    return sum(
        rows * (CACHED_STEP_COST if index % plan.cache_interval else 1.0) for index, rows in enumerate(plan.rows)
    )
