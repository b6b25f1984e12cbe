"""Finds the fastest way to run one network here that is accurate on recorded inputs."""

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
from stillhouse.measure.memory import release_memory
from stillhouse.pipelines.batch_sizes import run_split
from stillhouse.pipelines.manifest import Component
from stillhouse.pipelines.roles import DENOISER
from stillhouse.pipelines.runners import component_batch_sizes, open_component, reopens_per_batch_size

BATCH_ROWS = 8
"""Number of rows with which the denoiser is checked a second time: backends run other kernels for a large batch."""
CALLS, SECONDS = 3, 0.25
"""Least number of timed calls of a network, and least time that they take together; the shortest call counts."""

Arrays: TypeAlias = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One call of a network: its inputs and the outputs of the baseline, the network in float32, by name."""

    feeds: Arrays
    outputs: Arrays


@dataclass(frozen=True, slots=True)
class MeasuredComponent:
    """One way to run a network (backend, precision, graph), measured on this machine.

    Args:
        component: the way to run the network.
        seconds: time of the shortest call.
        sqnr: signal-to-quantization-noise ratio in dB of the worst output; None where the network could not run.
        refusal: sentence that says why the network cannot be run so, or is not accurate so; "" where it can.
    """

    component: Component
    seconds: float = float("inf")
    sqnr: float | None = None
    refusal: str = ""


def write_recorded_call(path: Path, recorded: RecordedCall) -> None:
    """Write a recorded call to an .npz file, whole or not at all: inputs as `feed/NAME`, outputs as `want/NAME`."""
    arrays = {f"feed/{name}": array for name, array in recorded.feeds.items()}
    arrays |= {f"want/{name}": array for name, array in recorded.outputs.items()}
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".part.npz")
    np.savez_compressed(temporary, allow_pickle=False, **arrays)
    temporary.replace(path)


def read_recorded_call(path: Path) -> RecordedCall:
    """Read what `write_recorded_call` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        feeds = {name.removeprefix("feed/"): stored[name] for name in stored.files if name.startswith("feed/")}
        outputs = {name.removeprefix("want/"): stored[name] for name in stored.files if name.startswith("want/")}
    return RecordedCall(feeds, outputs)


def find_fastest(measured: Sequence[MeasuredComponent]) -> MeasuredComponent | None:
    """Return the fastest of those that run and are accurate; None where there is none."""
    return min((item for item in measured if not item.refusal), key=lambda item: item.seconds, default=None)


def measure_component(
    directory: Path,
    role: str,
    component: Component,
    recorded: RecordedCall,
    min_sqnr: float,
    threads: int | None = None,
    *,
    needs_equal_rows: bool = False,
) -> MeasuredComponent:
    """Open a network, compare its outputs with those of the baseline, and time it.

    Args:
        directory: directory of the pipeline.
        role: role of the network. A denoiser is also run on a larger batch.
        component: how the network is run.
        recorded: a call of the baseline.
        min_sqnr: least allowed signal-to-quantization-noise ratio of an output, in dB.
        threads: most threads of the network; None: as in `component`.
        needs_equal_rows: whether a row of a denoiser must have the same bits alone and in a larger batch.
    """

    def open_for(feeds: Arrays) -> Runner:
        shapes = {name: array.shape for name, array in feeds.items()}
        return open_component(directory, component, shapes, RunnerOptions(threads=threads))

    try:
        runner = open_for(recorded.feeds)
        sqnr, refusal = _check_accuracy(
            role, component, runner, open_for, recorded, min_sqnr, needs_equal_rows=needs_equal_rows
        )
        if refusal:
            return MeasuredComponent(component, sqnr=sqnr, refusal=refusal)
        return MeasuredComponent(component, _shortest_call(runner, recorded.feeds), sqnr)
    except StillhouseError as error:
        return MeasuredComponent(component, refusal=f"{describe_component(component)}: {error.problem}")
    finally:
        release_memory()


def _shortest_call(runner: Runner, feeds: Arrays) -> float:
    """Return the seconds of the shortest of several calls of a network."""
    seconds: list[float] = []
    while len(seconds) < CALLS or sum(seconds) < SECONDS:
        start = perf_counter()
        runner(feeds)
        seconds.append(perf_counter() - start)
    return min(seconds)


def describe_backend(component: Component) -> str:
    """Return backend, precision and streams of a network as text."""
    streams = f" in {component.streams} streams" if component.streams > 1 else ""
    return f"{component.backend} {component.precision}{streams}"


def describe_component(component: Component) -> str:
    """Return backend, precision, streams and graph of a network as text."""
    return f"{describe_backend(component)} of {component.graph}"


def _check_accuracy(
    role: str,
    component: Component,
    runner: Runner,
    open_for: Callable[[Arrays], Runner],
    recorded: RecordedCall,
    min_sqnr: float,
    *,
    needs_equal_rows: bool,
) -> tuple[float, str]:
    """Run a network, and return its signal-to-quantization-noise ratio (SQNR) in dB and why it is refused, or "".

    The ratio is the least of all outputs. An accurate denoiser is also run on a batch of 8 rows, which repeats the
    recorded rows, unless it runs each row by itself, or would be compiled anew for this batch size and its rows need
    not be equal.

    Args:
        role, component: the network, and how it is run.
        runner: the network, opened for the shapes of the recorded call.
        open_for: opens it for the shapes of other inputs.
        recorded: a call of the baseline.
        min_sqnr: least allowed ratio in dB.
        needs_equal_rows: whether a row must have the same bits alone and in a larger batch.
    """
    outputs, name = runner(recorded.feeds), describe_component(component)
    sqnr = _least_sqnr(recorded.outputs, outputs)
    if sqnr < min_sqnr:
        return sqnr, f"{name} errs here: SQNR {sqnr:.1f} dB, the bound is {min_sqnr:.1f}"
    is_reopened = reopens_per_batch_size(component)
    if role != DENOISER or component.streams > 1 or (is_reopened and not needs_equal_rows):
        return sqnr, ""
    if is_reopened:
        runner = open_for(_repeat_rows(recorded.feeds))
    sizes = component_batch_sizes(component)
    run = partial(run_split, rows=sizes, arrays=NUMPY, run=runner) if sizes else runner
    together = run(_repeat_rows(recorded.feeds))
    sqnr = _least_sqnr(_repeat_rows(recorded.outputs), together)
    if sqnr < min_sqnr:
        return sqnr, f"{name} errs here: SQNR {sqnr:.1f} dB of {BATCH_ROWS} rows together, the bound is {min_sqnr:.1f}"
    alone = _repeat_rows(outputs)
    if needs_equal_rows and not all(np.array_equal(alone[output], together[output]) for output in alone):
        return sqnr, f"{name} gives a row another result in a batch of {BATCH_ROWS} than in a smaller one"
    return sqnr, ""


def _repeat_rows(arrays: Arrays) -> dict[str, NDArray[Any]]:
    """Return arrays whose rows are repeated to BATCH_ROWS rows."""
    return {name: np.resize(array, (BATCH_ROWS, *array.shape[1:])) for name, array in arrays.items()}


def _least_sqnr(expected: Arrays, actual: Arrays) -> float:
    return min(_sqnr(array, actual.get(name)) for name, array in expected.items())


def _sqnr(expected: NDArray[Any], actual: NDArray[Any] | None) -> float:
    if actual is None or actual.shape != expected.shape or not np.isfinite(actual).all():
        return float("-inf")
    return compare_tensors(expected, actual).sqnr
