"""Ways to walk from noise to picture: other samplers, fewer steps, part-time guidance, cached steps.

Three ladders, each from gentle to bold, are searched for the boldest rung whose pictures are still right; then the
rungs are combined, cheapest first, and the first combination that passes on many pictures is it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from stillhouse.accelerate.records.candidate import PIPELINE, Candidate
from stillhouse.core import ImageRequest
from stillhouse.diffusion import Trajectory
from stillhouse.pipelines.manifest import Defaults, Manifest
from stillhouse.pipelines.resolve import plan_request, resolve

SHALLOW = 0.2
"""What a cached step is taken to cost beside a full one, to order candidates before they are measured."""
_FEWEST = 4
_SHARES = (0.5, 0.35, 0.28, 0.23)
_INTERVALS = ((0.0, 0.8), (0.0, 0.6), (0.0, 0.45))
_CACHE_INTERVALS = (2, 3)
_BOLD_SAMPLER = "dpmpp_2m"
_OTHER_SAMPLERS = ("unipc", "ddim")


@dataclass(frozen=True, slots=True)
class Ladder:
    """Candidates of one kind, from gentle to bold, as options of a walk."""

    kind: str
    rungs: tuple[Mapping[str, str], ...]


def walk(options: Mapping[str, str]) -> Candidate:
    """The candidate of these options; none of them is the pipeline's own walk."""
    return Candidate(PIPELINE, "stillhouse", "walk", "f32", dict(options))


def ladders(manifest: Manifest, caches: bool) -> list[Ladder]:
    """What can be tried of a pipeline; `caches` says whether cached steps are possible.

    Nothing of a student that was distilled to one grid: it knows no other steps, samplers or halves of its network.
    """
    if manifest.distilled and manifest.distilled.timesteps:
        return []
    steps = manifest.defaults.steps
    counts = sorted({max(_FEWEST, round(share * steps)) for share in _SHARES} - {steps}, reverse=True)
    found = [Ladder("steps", tuple({"sampler": _BOLD_SAMPLER, "steps": str(n)} for n in counts if n < steps))]
    if caches:
        found.append(Ladder("cache_interval", tuple({"cache_interval": str(every)} for every in _CACHE_INTERVALS)))
    if manifest.defaults.guidance > 1 and not manifest.guidance_channels:
        found.append(Ladder("guidance", tuple({"guidance_interval": f"{a:g}-{b:g}"} for a, b in _INTERVALS)))
    return [ladder for ladder in found if ladder.rungs]


def other_samplers(options: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
    """The same steps with other samplers."""
    for sampler in _OTHER_SAMPLERS:
        if sampler != options.get("sampler"):
            yield {**options, "sampler": sampler}


def combinations(passing: Mapping[str, Sequence[Mapping[str, str]]]) -> list[Mapping[str, str]]:
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


def walked(candidate: Candidate, defaults: Defaults) -> Defaults:
    """The defaults of a pipeline that walks as the candidate does."""
    return replace(defaults, **request_fields(candidate.options))  # type: ignore[arg-type]


def cost(manifest: Manifest, options: Mapping[str, str]) -> float:
    """Rows that the U-Net computes for one picture; cached ones count `SHALLOW`."""
    every = int(options.get("cache_interval", "1"))
    fields = request_fields({name: value for name, value in options.items() if name != "cache_interval"})
    course = plan_request(manifest, resolve(manifest, ImageRequest("", **fields)))  # type: ignore[arg-type]
    trajectory = Trajectory(course, np.zeros((1, 1, 1), np.float32), {})
    total = 0.0
    for index in range(trajectory.evaluation_count):
        trajectory.index = index
        total += trajectory.rows * (SHALLOW if index % every else 1.0)
    return total
