"""Ways to walk from noise to picture: other samplers, fewer steps, part-time guidance, cached steps.

Three ladders, each from gentle to bold, are searched for the boldest rung whose pictures are still right; then the
rungs are combined, cheapest first, and the first combination that passes on many pictures is it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from stillhouse.accelerate.records.candidate import PIPELINE, Candidate
from stillhouse.core import ImageRequest
from stillhouse.pipelines.manifest import Defaults, Manifest
from stillhouse.pipelines.resolve import resolve

CACHED_STEP_COST = 0.2
"""What a cached step is taken to cost beside a full one, to order candidates before they are measured."""
_MIN_STEPS = 4
_STEP_SHARES = (0.5, 0.35, 0.28, 0.23)
_GUIDANCE_INTERVALS = ((0.0, 0.8), (0.0, 0.6), (0.0, 0.45))
_CACHE_INTERVALS = (2, 3)
_FEW_STEP_SAMPLER = "dpmpp_2m"
_OTHER_SAMPLERS = ("unipc", "ddim")


@dataclass(frozen=True, slots=True)
class SearchAxis:
    """Candidates of one kind, from gentle to bold, as options of a walk."""

    name: str
    levels: tuple[Mapping[str, str], ...]


def variant_candidate(options: Mapping[str, str]) -> Candidate:
    """The candidate of these options; none of them is the pipeline's own walk."""
    return Candidate(PIPELINE, "stillhouse", "sampling", "f32", dict(options))


def list_search_axes(manifest: Manifest, can_cache: bool) -> list[SearchAxis]:
    """What can be tried of a pipeline; `caches` says whether cached steps are possible.

    Nothing of a student that was distilled to one grid: it knows no other steps, samplers or halves of its network.
    """
    if manifest.distilled and manifest.distilled.timesteps:
        return []
    steps = manifest.defaults.steps
    counts = sorted({max(_MIN_STEPS, round(share * steps)) for share in _STEP_SHARES} - {steps}, reverse=True)
    found = [SearchAxis("steps", tuple({"sampler": _FEW_STEP_SAMPLER, "steps": str(n)} for n in counts if n < steps))]
    if can_cache:
        found.append(SearchAxis("cache_interval", tuple({"cache_interval": str(every)} for every in _CACHE_INTERVALS)))
    if manifest.defaults.guidance > 1 and not manifest.guidance_channels:
        found.append(
            SearchAxis("guidance", tuple({"guidance_interval": f"{a:g}-{b:g}"} for a, b in _GUIDANCE_INTERVALS))
        )
    return [ladder for ladder in found if ladder.levels]


def other_samplers(options: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
    """The same steps with other samplers."""
    for sampler in _OTHER_SAMPLERS:
        if sampler != options.get("sampler"):
            yield {**options, "sampler": sampler}


def combine_levels(passing: Mapping[str, Sequence[Mapping[str, str]]]) -> list[Mapping[str, str]]:
    """Every way to take at most one rung of each ladder, at least one of all."""
    choices = [[{}, *rungs] for rungs in passing.values()]
    merged = [{name: value for part in parts for name, value in part.items()} for parts in product(*choices)]
    return [options for options in merged if options]


def request_fields(options: Mapping[str, str]) -> dict[str, object]:
    """The options of a walk as fields of an `ImageRequest`; of a student, none.

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
    """The defaults of a pipeline that walks as the candidate does."""
    return replace(defaults, **request_fields(candidate.options))  # type: ignore[arg-type]


def variant_cost(manifest: Manifest, options: Mapping[str, str]) -> float:
    """Rows that the U-Net computes for one picture; cached ones count `SHALLOW`."""
    every = int(options.get("cache_interval", "1"))
    fields = request_fields({name: value for name, value in options.items() if name != "cache_interval"})
    plan = resolve(manifest, ImageRequest("", **fields)).plan  # type: ignore[arg-type]
    return sum(rows * (CACHED_STEP_COST if index % every else 1.0) for index, rows in enumerate(plan.rows))
