"""A pipeline that was tuned on another machine, opened on this one: what it should run here is found out in seconds.

An engine that this machine does not have, or a precision that errs here, would otherwise fail late or, worse, quietly.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.backends.runner import Runner, RunnerOptions
from stillhouse.diffusion import NUMPY
from stillhouse.errors import StillhouseError
from stillhouse.measure.fidelity import compare_tensors
from stillhouse.measure.machine import read_machine
from stillhouse.pipelines.batch_sizes import run_split
from stillhouse.pipelines.manifest import Component, Manifest, Tuned
from stillhouse.pipelines.runners import UNET, component_batch_sizes, open_component, reopens_per_batch_size

BATCH_ROWS = 8
"""Rows of the U-Net that are tried in one call, too: engines take other kernels for them than for one picture's."""
CALLS = 3
"""Calls on each probe that the time is taken of, the least counts."""


class ForeignMachine(UserWarning):
    """A pipeline was tuned on another machine; the message says what was found out and changed."""


@dataclass(frozen=True, slots=True)
class Revalidated:
    """What a component runs here: the place of the one that was taken among those there were, and why others fell."""

    component: Component
    place: int
    seconds: float
    refused: tuple[str, ...]


def needs_revalidation(manifest: Manifest) -> bool:
    """Whether the pipeline was tuned on a machine whose figures say nothing about this one."""
    return manifest.tuned is not None and manifest.tuned.fingerprint != read_machine().fingerprint()


def revalidate(directory: Path, manifest: Manifest, threads: int | None = None) -> dict[str, Component]:
    """The components to run on this machine: of what the pipeline knows, the fastest that is right here.

    Warns with `ForeignMachine` about what it found.

    Raises:
        StillhouseError: nothing that the pipeline knows of runs here as it should.
    """
    tuned = manifest.tuned
    if tuned is None or not needs_revalidation(manifest):
        return dict(manifest.components)
    components, told = dict(manifest.components), []
    for name, probe in tuned.probes.items():
        found = _fastest(directory, name, [components[name], *tuned.alternatives.get(name, ())], tuned, probe, threads)
        told.append(_describe(name, components[name], found))
        components[name] = found.component
    warnings.warn(
        f"{manifest.name} was tuned on another machine; verified again: {'; '.join(told)}. "
        "`stillhouse accelerate` on this machine settles it",
        ForeignMachine,
        stacklevel=3,
    )
    return components


def _fastest(
    directory: Path, name: str, choices: Sequence[Component], tuned: Tuned, probe: str, threads: int | None
) -> Revalidated:
    feeds, wanted = _read(directory / probe)
    refused: list[str] = []
    passing: list[tuple[float, int]] = []
    for place, component in enumerate(choices):
        try:
            shapes = {name: array.shape for name, array in feeds.items()}
            runner = open_component(directory, component, shapes, RunnerOptions(threads=threads))
            outputs = runner(feeds)
        except StillhouseError as error:
            refused.append(f"{_name(component)}: {error.given}")
            continue
        worst = min(_sqnr(wanted[output], outputs.get(output)) for output in wanted)
        told = ""
        if (
            worst >= tuned.min_sqnr
            and name == UNET
            and not reopens_per_batch_size(component)
            and component.streams == 1
        ):
            told = f" of {BATCH_ROWS} rows together"
            sizes = component_batch_sizes(component)
            many = partial(run_split, rows=sizes, arrays=NUMPY, run=runner) if sizes else runner
            worst = _batch_sqnr(many, feeds, wanted)
        if worst < tuned.min_sqnr:
            given = f"{_name(component)} errs here: SQNR {worst:.1f} dB{told}, the bound is {tuned.min_sqnr:.1f}"
            refused.append(given)
            continue
        passing.append((min(_seconds(runner, feeds) for _ in range(CALLS)), place))
    if not passing:
        raise StillhouseError(
            f"nothing that this pipeline knows of runs its {name} here as it should: {'; '.join(refused)}",
            fix="run `stillhouse accelerate` with its source on this machine",
        )
    seconds, place = min(passing)
    return Revalidated(choices[place], place, seconds, tuple(refused))


def _batch_sqnr(
    runner: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    feeds: Mapping[str, NDArray[Any]],
    wanted: Mapping[str, NDArray[Any]],
) -> float:
    """The worst SQNR of as many rows in one call as a server makes of several pictures."""
    many, more = (
        {name: np.resize(array, (BATCH_ROWS, *array.shape[1:])) for name, array in arrays.items()}
        for arrays in (feeds, wanted)
    )
    try:
        outputs = runner(many)
    except StillhouseError:
        return float("-inf")
    return min(_sqnr(more[output], outputs.get(output)) for output in more)


def _sqnr(wanted: NDArray[Any], got: NDArray[Any] | None) -> float:
    if got is None or got.shape != wanted.shape or not np.isfinite(got).all():
        return float("-inf")
    return compare_tensors(wanted, got).sqnr


def _seconds(runner: Runner, feeds: Mapping[str, NDArray[Any]]) -> float:
    began = perf_counter()
    runner(feeds)
    return perf_counter() - began


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    with np.load(path, allow_pickle=False) as stored:
        feeds = {name.removeprefix("feed/"): stored[name] for name in stored.files if name.startswith("feed/")}
        wanted = {name.removeprefix("want/"): stored[name] for name in stored.files if name.startswith("want/")}
    return feeds, wanted


def _name(component: Component) -> str:
    return f"{component.backend} {component.precision} of {component.graph}"


def _describe(name: str, before: Component, found: Revalidated) -> str:
    why = f" ({'; '.join(found.refused)})" if found.refused else ""
    if found.component == before:
        return f"{name} runs as tuned{why}"
    return f"{name} is run by {_name(found.component)} instead of {_name(before)}{why}"
