"""The areas of the source whose tests are judged, and the draw of mutants from each."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tools.mutants.sites import Mutant, MutantKey, find_mutants, is_equivalent


@dataclass(frozen=True, slots=True)
class Area:
    """A part of the source and the tests that should find a fault in it.

    Args:
        name: short name.
        source: directory of the modules, relative to `src`.
        quick: tests that run first, with the doctests of `source`; files or directories relative to the repository.
        wider: tests that run where the quick ones find nothing. Files of `quick` do not run twice.
    """

    name: str
    source: str
    quick: tuple[str, ...]
    wider: tuple[str, ...]


AREAS = (
    Area(
        "diffusion",
        "stillhouse/diffusion",
        ("tests/diffusion", "tests/golden"),
        ("tests/pipelines/test_pipeline.py", "tests/pipelines/test_resolve.py"),
    ),
    Area(
        "engine",
        "stillhouse/serve/engine",
        (
            "tests/serve/engine/test_arrivals.py",
            "tests/serve/engine/test_cost.py",
            "tests/serve/engine/test_engine.py",
            "tests/serve/engine/test_output.py",
            "tests/serve/engine/test_policy.py",
            "tests/serve/engine/test_request_pool.py",
            "tests/serve/test_dispatcher.py",
        ),
        ("tests/serve/engine", "tests/serve/worker", "tests/serve/test_plan_once.py"),
    ),
    Area(
        "selection",
        "stillhouse/accelerate/selection",
        ("tests/accelerate/selection", "tests/accelerate/search/test_mixed_precision.py"),
        ("tests/accelerate/search",),
    ),
    Area(
        "store",
        "stillhouse/serve/store",
        ("tests/serve/store", "tests/serve/test_job_queue.py"),
        ("tests/serve/api/test_jobs.py", "tests/serve/test_reliability.py"),
    ),
)
"""The quick tests of an area take less than a minute on one core, the wider ones some minutes."""


class DrawnMutant(NamedTuple):
    """A mutant and the area from which it was drawn."""

    area: Area
    mutant: Mutant


def draw_mutants(source: Path, areas: Sequence[Area], count: int, seed: str) -> list[DrawnMutant]:
    """Return mutants of each area, `count` in all, drawn uniformly. The same seed and source give the same mutants.

    Mutants that compile to the code of the original are passed over.

    Args:
        source: directory `src`.
        areas: where mutants are drawn; the first ones get one more where `count` is no multiple of their number.
        count: number of mutants. Fewer are returned where an area has fewer.
        seed: seed of the draw, with the name of each area.
    """
    drawn = []
    for index, area in enumerate(areas):
        wanted = count // len(areas) + (index < count % len(areas))
        drawn += [DrawnMutant(area, mutant) for mutant in islice(_shuffled(source, area, seed), wanted)]
    return drawn


def locate_mutants(source: Path, areas: Sequence[Area]) -> dict[MutantKey, DrawnMutant]:
    """Return every mutant of the areas by key."""
    return {mutant.key: DrawnMutant(area, mutant) for area in areas for mutant in _area_mutants(source, area)}


def _shuffled(source: Path, area: Area, seed: str) -> Iterator[Mutant]:
    mutants = _area_mutants(source, area)
    for mutant in random.Random(f"{seed}:{area.name}").sample(mutants, len(mutants)):
        text = (source / mutant.file).read_text(encoding="utf-8")
        if not is_equivalent(text, mutant.apply(text)):
            yield mutant


def _area_mutants(source: Path, area: Area) -> list[Mutant]:
    """Return every mutant of an area, sorted by file and place."""
    paths = sorted((source / area.source).rglob("*.py"))
    return [
        mutant
        for path in paths
        for mutant in find_mutants(path.relative_to(source).as_posix(), path.read_text(encoding="utf-8"))
    ]
