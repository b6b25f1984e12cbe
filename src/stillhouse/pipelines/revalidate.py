"""Checks a pipeline that was accelerated on another machine, to choose how its networks run on this machine.

Without the check, a backend that is not installed on this machine would fail late, and a precision that is not accurate
here would go unnoticed. The check takes seconds.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillhouse.backends.runner import Runner, RunnerOptions
from stillhouse.diffusion import NUMPY
from stillhouse.errors import StillhouseError
from stillhouse.measure.fidelity import compare_tensors
from stillhouse.measure.machine import read_machine
from stillhouse.pipelines.batch_sizes import run_split
from stillhouse.pipelines.manifest import Component, Manifest
from stillhouse.pipelines.roles import DENOISER
from stillhouse.pipelines.runners import component_batch_sizes, open_component, reopens_per_batch_size

BATCH_ROWS = 8
"""Number of rows with which the denoiser is checked a second time: backends run other kernels for a large batch."""
CALLS = 3
"""Number of timed calls of a network, of which the shortest counts."""

Arrays: TypeAlias = Mapping[str, NDArray[Any]]


class ForeignMachine(UserWarning):
    """The warning that a pipeline was accelerated on another machine.

    The message says which networks do not run as the manifest says, and why.
    """


@dataclass(frozen=True, slots=True)
class Revalidated:
    """The result of choosing how one network runs on this machine.

    The candidates are the ways to run the network (backend, precision, graph) that the manifest lists.

    Args:
        component: the chosen candidate.
        place: index of the chosen candidate, from 0.
        seconds: time of the chosen candidate's shortest call.
        refused: for each candidate that cannot run or is not accurate here, a sentence that says why.
    """

    component: Component
    place: int
    seconds: float
    refused: tuple[str, ...]


def needs_revalidation(manifest: Manifest) -> bool:
    """Return whether the pipeline was accelerated on another machine, so that its choices must be checked here."""
    return manifest.tuned is not None and manifest.tuned.fingerprint != read_machine().fingerprint()


def revalidate(directory: Path, manifest: Manifest, threads: int | None = None) -> dict[str, Component]:
    """Return how each network runs on this machine, by role: the fastest way that is accurate here.

    For each network with recorded inputs, the manifest's component and its alternatives are run and compared. Other
    networks, and pipelines that were not accelerated on another machine, keep the manifest's components.

    Args:
        directory: directory of the pipeline.
        manifest: manifest of the pipeline.
        threads: most threads of each network; None: as in the manifest.

    Warns:
        ForeignMachine: says which components were replaced, and why.

    Raises:
        StillhouseError: no component for a role is accurate here.
    """
    tuned = manifest.tuned
    if tuned is None or not needs_revalidation(manifest):
        return dict(manifest.components)
    components, messages = dict(manifest.components), []
    for role, probe in tuned.probes.items():
        candidates = [components[role], *tuned.alternatives.get(role, ())]
        choice = _choose(directory, role, candidates, tuned.min_sqnr, probe, threads)
        messages.append(_describe(role, components[role], choice))
        components[role] = choice.component
    warnings.warn(
        f"{manifest.name} was tuned on another machine; verified again: {'; '.join(messages)}. "
        "`stillhouse accelerate` on this machine settles it",
        ForeignMachine,
        stacklevel=3,
    )
    return components


def _choose(
    directory: Path, role: str, candidates: Sequence[Component], min_sqnr: float, probe: str, threads: int | None
) -> Revalidated:
    feeds, expected = _read_probe(directory / probe)
    refused: list[str] = []
    passing: list[tuple[float, int]] = []
    for place, component in enumerate(candidates):
        try:
            runner = _open(directory, component, feeds, threads)
            sqnr, batch = _worst_sqnr(role, component, runner, feeds, expected, min_sqnr)
        except StillhouseError as error:
            refused.append(f"{_name(component)}: {error.problem}")
            continue
        if sqnr < min_sqnr:
            refused.append(f"{_name(component)} errs here: SQNR {sqnr:.1f} dB{batch}, the bound is {min_sqnr:.1f}")
            continue
        passing.append((min(_seconds(runner, feeds) for _ in range(CALLS)), place))
    if not passing:
        raise StillhouseError(
            f"this pipeline has no way to run its {role} accurately on this machine: {'; '.join(refused)}",
            fix="run `stillhouse accelerate` with the pipeline's source on this machine",
        )
    seconds, place = min(passing)
    return Revalidated(candidates[place], place, seconds, tuple(refused))


def _open(directory: Path, component: Component, feeds: Arrays, threads: int | None) -> Runner:
    shapes = {name: array.shape for name, array in feeds.items()}
    return open_component(directory, component, shapes, RunnerOptions(threads=threads))


def _worst_sqnr(
    role: str, component: Component, runner: Runner, feeds: Arrays, expected: Arrays, min_sqnr: float
) -> tuple[float, str]:
    """Run a network, and return its signal-to-quantization-noise ratio (SQNR) in dB and a text for error messages.

    The ratio is the least of all outputs, compared with `expected`: the outputs of the baseline (the network before
    acceleration) for the recorded inputs `feeds`. `component` says how the network is run. A denoiser with a ratio of
    `min_sqnr` or more is also run on a batch of 8 rows, which repeats the recorded rows, unless it runs each row by
    itself or would be compiled anew for this batch size. The ratio of the batch is then returned in place of the first
    one, with the text " of 8 rows together". Without the batch, the text is empty.
    """
    outputs = runner(feeds)
    worst = min(_sqnr(expected[output], outputs.get(output)) for output in expected)
    is_batched = role == DENOISER and component.streams == 1 and not reopens_per_batch_size(component)
    if worst < min_sqnr or not is_batched:
        return worst, ""
    sizes = component_batch_sizes(component)
    run = partial(run_split, rows=sizes, arrays=NUMPY, run=runner) if sizes else runner
    return _batch_sqnr(run, feeds, expected), f" of {BATCH_ROWS} rows together"


def _batch_sqnr(run: Callable[[Mapping[str, Any]], Mapping[str, Any]], feeds: Arrays, expected: Arrays) -> float:
    """Return the least signal-to-quantization-noise ratio of all outputs, in dB, for a batch of `BATCH_ROWS` rows.

    The rows of the recorded inputs and of the expected outputs are repeated to fill the batch. Where the network fails,
    the result is minus infinity.

    Args:
        run: the network: takes inputs by name, returns outputs by name.
        feeds: recorded inputs, by name.
        expected: outputs that are expected for these inputs, by name.
    """
    batch_feeds, batch_expected = (
        {name: np.resize(array, (BATCH_ROWS, *array.shape[1:])) for name, array in arrays.items()}
        for arrays in (feeds, expected)
    )
    try:
        outputs = run(batch_feeds)
    except StillhouseError:
        return float("-inf")
    return min(_sqnr(batch_expected[output], outputs.get(output)) for output in batch_expected)


def _sqnr(expected: NDArray[Any], actual: NDArray[Any] | None) -> float:
    if actual is None or actual.shape != expected.shape or not np.isfinite(actual).all():
        return float("-inf")
    return compare_tensors(expected, actual).sqnr


def _seconds(runner: Runner, feeds: Arrays) -> float:
    start = perf_counter()
    runner(feeds)
    return perf_counter() - start


def _read_probe(path: Path) -> tuple[Arrays, Arrays]:
    """Read an .npz file of recorded data: the inputs of a network, and the outputs expected for them, both by name."""
    with np.load(path, allow_pickle=False) as stored:
        feeds = {name.removeprefix("feed/"): stored[name] for name in stored.files if name.startswith("feed/")}
        expected = {name.removeprefix("want/"): stored[name] for name in stored.files if name.startswith("want/")}
    return feeds, expected


def _name(component: Component) -> str:
    return f"{component.backend} {component.precision} of {component.graph}"


def _describe(role: str, before: Component, choice: Revalidated) -> str:
    reasons = f" ({'; '.join(choice.refused)})" if choice.refused else ""
    if choice.component == before:
        return f"{role} runs as tuned{reasons}"
    return f"{role} is run by {_name(choice.component)} instead of {_name(before)}{reasons}"
