"""The process that measures one candidate: `python -m stillhouse.accelerate.evaluation.candidate_worker`.

The process answers each command of `candidate_messages` with the result, or with a `Failure`. A crash of an inference
runtime ends this process only, not `stillhouse accelerate`.
"""

import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter
from typing import assert_never

import numpy as np

from stillhouse.accelerate.calibration.calibration_data import (
    Feeds,
    Probe,
    gather_rows,
    interleave_rows,
    read_probes,
    write_probes,
)
from stillhouse.accelerate.evaluation.build import build_graph, candidate_component
from stillhouse.accelerate.evaluation.candidate_messages import (
    Build,
    Built,
    CandidateCommand,
    Failure,
    Generate,
    GpuMemory,
    Open,
    Opened,
    RecordTrajectory,
    Release,
    Reply,
    RunFeeds,
    RunLargeBatch,
    RunProbes,
    StartCandidate,
    TimeBatch,
    TimeCalls,
    TimePictures,
    UseGraph,
)
from stillhouse.accelerate.evaluation.task import CandidateTask
from stillhouse.accelerate.evaluation.tiled_decoder import TiledDecoder
from stillhouse.accelerate.evaluation.trajectory import record_trajectory, write_trajectory
from stillhouse.accelerate.workspace import is_sweep_directory, original_manifest
from stillhouse.backends.registry import device_arrays, find_backend
from stillhouse.backends.runner import GraphRunner, Runner, RunnerOptions
from stillhouse.backends.runtime import translate_errors
from stillhouse.backends.torch_device import CUDA, peak_gpu_memory
from stillhouse.core import ImageRequest, ImageResult
from stillhouse.diffusion import NUMPY, Arrays
from stillhouse.errors import StillhouseError
from stillhouse.gpu import device_index, used_memory
from stillhouse.measure.memory import release_memory
from stillhouse.pipelines.batch_sizes import run_split, split_batch
from stillhouse.pipelines.manifest import Component, Defaults, Manifest, read_manifest
from stillhouse.pipelines.pipeline import ImageTrajectory, Pipeline
from stillhouse.pipelines.roles import DENOISER
from stillhouse.pipelines.runners import component_batch_sizes, open_component, opening_shapes, reopens_per_batch_size
from stillhouse.workers.channel import Channel, TransportClosed
from stillhouse.workers.process import connect_to_parent

_QUICK_OPEN_SECONDS = 3.0
"""A network is opened a second time, only to count its operations by precision, if opening takes at most this many
seconds."""
_QUICK_SECONDS = 1.0
"""An untimed picture is generated before a timed one if the picture before took at most this many seconds."""
OUTPUTS_FILE, LARGE_BATCH_FILE, PICTURES_FILE = "outputs.npz", "large_batch.npz", "pictures.npz"


class CandidateWorker:
    """Measures a candidate (backend, precision, options of a network or pipeline), with a method for each command.

    Args:
        task: the candidate, its inputs and folders.
    """

    def __init__(self, task: CandidateTask) -> None:
        self.task = task
        self.folder = Path(task.folder)
        self.probes: Sequence[Probe] = read_probes(Path(task.probes)) if task.probes else []
        self.graph = Path(task.graph)
        self._runner: Runner | None = None
        self._resized_runners: dict[frozenset[tuple[str, tuple[int, ...]]], Runner] = {}
        self._pipeline: Pipeline | None = None
        self._gpu_bytes_before: int | None = None
        self._picture_seconds = float("inf")

    def run(self, command: CandidateCommand) -> Reply:
        """Run a command of `candidate_messages` and return the reply; None for a command without a result."""
        match command:
            case Build():
                return self.build()
            case UseGraph(graph):
                self.graph = Path(graph)
            case Open():
                return self.open()
            case GpuMemory():
                return self.gpu_memory()
            case Release():
                self.release()
            case RunProbes():
                self.run_probes()
            case RunFeeds(feeds, outputs):
                self.run_feeds(Path(feeds), Path(outputs))
            case RunLargeBatch(rows):
                self.run_large_batch(rows)
            case TimeCalls(calls):
                return self.time_calls(calls)
            case TimeBatch(rows, calls):
                return self.time_batch(rows, calls)
            case Generate(requests, batch):
                return self.generate(requests, batch)
            case RecordTrajectory(request, path):
                write_trajectory(Path(path), record_trajectory(self._get_pipeline(), request))
            case TimePictures(request, count):
                return self.time_pictures(request, count)
            case StartCandidate():
                raise ValueError("StartCandidate was sent twice; allowed only as the first command of a process")
            case _:
                assert_never(command)
        return None

    def build(self) -> Built:
        """Build the candidate's graph, unless it exists, and return its path and the seconds that building it took."""
        task = self.task
        # A conversion to a later opset is checked on inputs; without calibration data, probes serve as well.
        path = task.calibration or ("" if task.candidate.needs_calibration else task.probes)
        inputs = read_probes(Path(path)) if path and task.candidate.makes_graph else []
        self.graph, seconds = build_graph(task.candidate, self.graph, Path(task.artifact), inputs)
        return Built(str(self.graph), seconds)

    def open(self) -> Opened:
        """Open the network and run it once.

        Return the seconds that opening and the first run took, the precision that the backend reports, and the number
        of operations by precision.
        """
        self._gpu_bytes_before = self._gpu_bytes_used() if self._gpu_bytes_before is None else self._gpu_bytes_before
        began = perf_counter()
        feeds = self.probes[0].feeds
        component = candidate_component(self.task.candidate, str(self.graph), "")
        self._runner = self._wrap_tiled(self._open_network(component, feeds))
        opened = perf_counter()
        self._runner(feeds)
        ran = perf_counter()
        counted = self._runner
        count_settings = find_backend(component.backend).count_settings
        if count_settings and not counted.layer_precisions and opened - began < _QUICK_OPEN_SECONDS:
            counting = replace(component, settings={**component.settings, **count_settings})
            counted = self._open_network(counting, feeds)
        layers, weight_types = dict(counted.layer_precisions), dict(self._runner.weight_types)
        return Opened(opened - began, ran - opened, counted.precision, layers, weight_types)

    def gpu_memory(self) -> int | None:
        """Return the bytes of GPU memory that the candidate uses; None where it uses none, or no count is available.

        The result is the larger of torch's peak and the growth of the GPU's used memory since before the network was
        opened. The growth is needed because runtimes other than torch do not report their memory.
        """
        now = self._gpu_bytes_used()
        growth = None if now is None or self._gpu_bytes_before is None else now - self._gpu_bytes_before
        return max((count for count in (peak_gpu_memory(), growth) if count and count > 0), default=None)

    def _gpu_bytes_used(self) -> int | None:
        candidate = self.task.candidate
        return used_memory(device_index(candidate.options.get("device", CUDA))) if candidate.is_on_gpu else None

    def release(self) -> None:
        """Close all open networks, so that another process can use their memory; later commands open them again."""
        self._runner = self._pipeline = None
        self._resized_runners.clear()
        release_memory()

    def run_probes(self) -> None:
        """Run the network on every set of recorded inputs, and write the outputs to `OUTPUTS_FILE`."""
        self._run_probes(self.probes, self.folder / OUTPUTS_FILE)

    def run_feeds(self, feeds: Path, outputs: Path) -> None:
        """Run the network on every set of inputs of a file, and write the outputs to another file."""
        self._run_probes(read_probes(feeds), outputs)

    def _run_probes(self, probes: Sequence[Probe], path: Path) -> None:
        component = candidate_component(self.task.candidate, str(self.graph), "")
        outputs = [Probe(probe.label, self._runner_for(component, probe.feeds)(probe.feeds)) for probe in probes]
        write_probes(path, outputs)

    def run_large_batch(self, rows: int) -> None:
        """Run one batch of rows of several recorded inputs, and write the outputs to `LARGE_BATCH_FILE`.

        Args:
            rows: number of rows of the batch.
        """
        batch = gather_rows(self.probes, interleave_rows(self.probes, rows))
        component = candidate_component(self.task.candidate, str(self.graph), "")
        sizes, runner = self._opened_sizes(component), self._runner_for(component, batch.feeds)
        outputs = run_split(batch.feeds, sizes, NUMPY, runner) if sizes else runner(batch.feeds)
        write_probes(self.folder / LARGE_BATCH_FILE, [Probe(batch.label, outputs)])

    def time_calls(self, calls: int) -> float:
        """Run the network `calls` times on recorded inputs, one call after the other, and return the total seconds.

        If `calls` is above 1, an untimed call runs first, which loads this process's data into the CPU caches.
        """
        component = candidate_component(self.task.candidate, str(self.graph), "")
        run_calls = [
            self._bind_call(probe.feeds, self._runner_for(component, probe.feeds)) for probe in self.probes[:calls]
        ]
        if calls > 1:
            run_calls[0]()
        self._synchronize()
        began = perf_counter()
        for call in range(calls):
            run_calls[call % len(run_calls)]()
        self._synchronize()
        return perf_counter() - began

    def time_batch(self, rows: int, calls: int) -> float:
        """Run the network at a batch size, and return the seconds per row of the fastest of `calls` timed calls.

        The batch has `rows` rows, which repeat those of the first recorded input. An untimed call runs first.
        """
        component = candidate_component(self.task.candidate, str(self.graph), "")
        sizes = self._opened_sizes(component)
        run_parts = []
        for size in [part for _, part in split_batch(rows, sizes)] if sizes else [rows]:
            feeds = {n: np.resize(array, (size, *array.shape[1:])) for n, array in self.probes[0].feeds.items()}
            run_parts.append(self._bind_call(feeds, self._runner_for(component, feeds)))
        seconds = []
        for _ in range(calls + 1):
            began = perf_counter()
            for run_part in run_parts:
                run_part()
            self._synchronize()
            seconds.append(perf_counter() - began)
        return min(seconds[-calls:]) / rows

    def generate(self, requests: Sequence[ImageRequest], batch: int = 1) -> float:
        """Generate a picture for each request, and return the total seconds, without the time to open the pipeline.

        The pictures, uint8 [P, H, W, 3], and their final latents, [P, C, h, w], are written to `PICTURES_FILE`.

        Args:
            requests: the requests.
            batch: number of pictures that are generated at the same time.
        """
        read = self._get_pipeline().arrays.to_numpy
        began = perf_counter()
        results = [
            result
            for start in range(0, len(requests), batch)
            for result in self._generate_batch(requests[start : start + batch])
        ]
        seconds = perf_counter() - began
        temporary = self.folder / f".{PICTURES_FILE}"
        with temporary.open("wb") as file:
            pictures = np.array([result.image for _, result in results])
            np.savez(file, pictures=pictures, latents=np.array([read(image.latents) for image, _ in results]))
        temporary.replace(self.folder / PICTURES_FILE)
        return seconds

    def time_pictures(self, request: ImageRequest, count: int) -> float:
        """Generate a picture `count` times, and return the total seconds, without the time to open the pipeline.

        If pictures are quick, an untimed one comes first, which loads this process's data into the CPU caches.
        """
        self._get_pipeline()
        if self._picture_seconds <= _QUICK_SECONDS:
            self._generate_batch([request])
        began = perf_counter()
        for _ in range(count):
            self._generate_batch([request])
        seconds = perf_counter() - began
        self._picture_seconds = seconds / count
        return seconds

    def _opened_sizes(self, component: Component) -> tuple[int, ...]:
        """Return the static batch sizes that the network is opened for.

        The result is empty if the network is opened for one batch size only, or accepts any batch size.
        """
        return (
            ()
            if reopens_per_batch_size(component) or "axes" in component.settings
            else component_batch_sizes(component)
        )

    def _runner_for(self, component: Component, feeds: Feeds) -> Runner:
        """Return an open network that takes inputs of the shapes of `feeds` (arrays by input name).

        A network of static shapes is opened again for each new combination of shapes. As many networks stay open as the
        recorded inputs have combinations of shapes, because recorded texts of different lengths alternate. `component`
        gives the backend and settings of the candidate.
        """
        own, shapes = (
            opening_shapes(component, {name: array.shape for name, array in tensors.items()})
            for tensors in (self.probes[0].feeds, feeds)
        )
        if shapes == own or "axes" in component.settings:
            return self._get_runner()
        key = frozenset(shapes.items())
        if key not in self._resized_runners:
            while len(self._resized_runners) >= self._probe_shape_count:
                del self._resized_runners[next(iter(self._resized_runners))]
            self._resized_runners[key] = self._wrap_tiled(self._open_network(component, feeds))
        return self._resized_runners[key]

    @cached_property
    def _probe_shape_count(self) -> int:
        """Return how many different combinations of shapes the recorded inputs have."""
        return len({tuple((name, array.shape) for name, array in probe.feeds.items()) for probe in self.probes})

    def _open_network(self, component: Component, feeds: Feeds) -> Runner:
        """Open the network for the shapes of `feeds`, or for the size of a tile where the candidate decodes in tiles.

        The number of threads is that of `component`, else that of the task.

        Args:
            component: backend and settings of the candidate.
            feeds: arrays by input name.
        """
        shapes = {name: array.shape for name, array in feeds.items()}
        if tile := self.task.candidate.options.get("tile"):
            longest = int(tile) // self._manifest().latent.downscale
            shapes = {n: (1, *shape[1:-2], *(min(longest, side) for side in shape[-2:])) for n, shape in shapes.items()}
        options = RunnerOptions(threads=component.threads or self.task.threads)
        return open_component(self.folder, component, shapes, options)

    def _wrap_tiled(self, runner: Runner) -> Runner:
        tile = self.task.candidate.options.get("tile")
        if tile is None:
            return runner
        return TiledDecoder(runner, int(tile), self._manifest().latent.downscale)

    def _generate_batch(self, requests: Sequence[ImageRequest]) -> list[tuple[ImageTrajectory, ImageResult]]:
        """Generate a picture for each request, all at the same time; return their trajectories and results."""
        pipeline = self._get_pipeline()
        trajectories = [pipeline.start(request) for request in requests]
        for _ in pipeline.steps(trajectories):
            pass
        return [(trajectory, pipeline.finish(trajectory)) for trajectory in trajectories]

    def _get_runner(self) -> Runner:
        if self._runner is None:
            if self._pipeline:
                self.release()
            self.open()
        assert self._runner is not None
        return self._runner

    def _bind_call(self, feeds: Feeds, runner: Runner) -> Callable[[], object]:
        """Return a function that runs the network once on `feeds`, for timing.

        A denoiser's inputs are moved to the denoiser's device beforehand if the backend allows, because a pipeline
        keeps them on this device. Inputs of other networks stay in main memory.

        Args:
            feeds: arrays by input name.
            runner: the open network.
        """
        if self._arrays is NUMPY or not isinstance(runner, GraphRunner):
            return partial(runner, feeds)
        with translate_errors(self.task.candidate.backend, self.graph, "run"):
            return partial(runner.run_on_device, {name: self._arrays.to_device(array) for name, array in feeds.items()})

    def _synchronize(self) -> None:
        """Wait until the device has finished, because a GPU still computes, and may fail, after a call has returned."""
        with translate_errors(self.task.candidate.backend, self.graph, "run"):
            self._arrays.synchronize()

    @cached_property
    def _arrays(self) -> Arrays:
        candidate = self.task.candidate
        if candidate.component != DENOISER:
            return NUMPY
        arrays: Arrays | None = device_arrays(candidate.backend, candidate_component(candidate, "", "").settings)
        return arrays or NUMPY

    def _get_pipeline(self) -> Pipeline:
        if self._pipeline is None:
            task, components = self.task, dict(self.task.components)
            if task.graph:
                name = task.candidate.component
                components[name] = candidate_component(task.candidate, str(self.graph), components[name].weights)
            # Free the runner of the network, because the pipeline opens the same network again, and two copies may not
            # fit into memory.
            self.release()
            self._pipeline = Pipeline(
                Path(task.pipeline),
                manifest=self._manifest(),
                components=components,
                defaults=self._defaults(),
                step_cache=task.step_cache,
                threads=task.threads,
            )
        return self._pipeline

    def _defaults(self) -> Defaults | None:
        tile = self.task.candidate.options.get("tile")
        if tile is None:
            return self.task.defaults
        return replace(self.task.defaults or self._manifest().defaults, tile=int(tile))

    def _manifest(self) -> Manifest:
        """Return the manifest of the task's pipeline or student.

        In a working directory of `stillhouse accelerate` it is the original manifest, without chosen components.
        """
        directory = Path(self.task.pipeline)
        return original_manifest(directory) if is_sweep_directory(directory) else read_manifest(directory)


def main() -> None:
    """Receive the task from the parent process, then answer its commands until the parent closes the channel."""
    channel: Channel[Reply, CandidateCommand] = connect_to_parent(CandidateCommand)
    with suppress(TransportClosed):
        start = channel.receive()
        assert isinstance(start, StartCandidate)
        worker = CandidateWorker(start.task)
        while True:
            channel.send(_answer(worker, channel))


def _answer(worker: CandidateWorker, channel: Channel[Reply, CandidateCommand]) -> Reply:
    try:
        return worker.run(channel.receive())
    except TransportClosed:
        raise
    except Exception as error:
        traceback.print_exception(error)
        return _failure(error)


def _failure(error: Exception) -> Failure:
    if isinstance(error, StillhouseError):
        return Failure(error.problem, error.allowed, error.fix)
    if isinstance(error, MemoryError):
        return Failure("it ran out of memory")
    return Failure(f"{type(error).__name__}: {error}".splitlines()[0])


if __name__ == "__main__":
    main()
