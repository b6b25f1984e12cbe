"""The process in which one candidate lives: `python -m stillhouse.accelerate.evaluation.candidate_worker TASK`.

It answers each line of its standard input, a JSON list of a command and its arguments, with one line: `= ` and the
answer, or `! ` and what went wrong. Whatever a runtime does to the process stays in here.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter
from typing import Any

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
from stillhouse.accelerate.evaluation.task import CandidateTask, read_task
from stillhouse.accelerate.evaluation.tiled_decoder import TiledDecoder
from stillhouse.accelerate.workspace import is_sweep_directory, original_manifest
from stillhouse.backends.registry import device_arrays, reopen_scope
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
from stillhouse.pipelines.runners import UNET, component_batch_sizes, open_component, reopens_per_batch_size
from stillhouse.workers.lifetime import die_with_parent

_QUICK_OPEN_SECONDS = 3.0
"""Seconds of opening up to which a network is opened once more only to count its operations."""
OUTPUTS_FILE, LARGE_BATCH_FILE, PICTURES_FILE = "outputs.npz", "large_batch.npz", "pictures.npz"


class CandidateWorker:
    """A candidate in the making: each method is a command, and returns what JSON can say."""

    def __init__(self, task: CandidateTask) -> None:
        self.task = task
        self.folder = Path(task.folder)
        self.probes: Sequence[Probe] = read_probes(Path(task.probes)) if task.probes else []
        self.graph = Path(task.graph)
        self._runner: Runner | None = None
        self._resized_runner: tuple[Mapping[str, tuple[int, ...]], Runner] | None = None
        self._pipeline: Pipeline | None = None
        self._gpu_bytes_before: int | None = None

    def build(self) -> dict[str, Any]:
        """Make the artefact: seconds, and the graph that is to be opened."""
        self.graph, seconds = build_graph(self.task.candidate, self.graph, Path(self.task.artifact), self.probes)
        return {"seconds": seconds, "graph": str(self.graph)}

    def use_graph(self, graph: str) -> None:
        """Open this graph, which was built before."""
        self.graph = Path(graph)

    def open(self) -> dict[str, Any]:
        """Open the network and run it once: seconds, executed precision, census."""
        self._gpu_bytes_before = self._gpu_bytes_used() if self._gpu_bytes_before is None else self._gpu_bytes_before
        began = perf_counter()
        feeds = self.probes[0].feeds
        component = candidate_component(self.task.candidate, str(self.graph), "")
        self._runner = self._wrap_tiled(self._open_network(component, feeds))
        opened = perf_counter()
        self._runner(feeds)
        ran = perf_counter()
        counted = self._runner
        if component.backend == "onnxruntime" and not counted.layer_precisions and opened - began < _QUICK_OPEN_SECONDS:
            counting = replace(component, settings={**component.settings, "census": "1"})
            counted = self._open_network(counting, feeds)
        return {
            "seconds": opened - began,
            "first": ran - opened,
            "executed": counted.precision,
            "census": dict(counted.layer_precisions),
        }

    def gpu_memory(self) -> int | None:
        """Bytes of GPU memory that the candidate takes: what torch held at its highest, or what more of the GPU is in
        use than before it was opened, where other engines keep their memory to themselves."""
        now = self._gpu_bytes_used()
        told = [
            peak_gpu_memory(),
            None if now is None or self._gpu_bytes_before is None else now - self._gpu_bytes_before,
        ]
        return max((number for number in told if number and number > 0), default=None)

    def _gpu_bytes_used(self) -> int | None:
        candidate = self.task.candidate
        return used_memory(device_index(candidate.options.get("device", CUDA))) if candidate.is_on_gpu else None

    def release(self) -> None:
        """Close what is open, so that its memory can serve another; the next call opens it again."""
        self._runner = self._resized_runner = self._pipeline = None
        release_memory()

    def run_probes(self) -> None:
        """Run every probe and write what came back."""
        answers = [Probe(probe.label, self._run_probe(probe)) for probe in self.probes]
        write_probes(self.folder / OUTPUTS_FILE, answers)

    def run_large_batch(self, rows: int) -> None:
        """Run so many rows of the probes in one call, and write what came back."""
        batch = gather_rows(self.probes, interleave_rows(self.probes, rows))
        component = candidate_component(self.task.candidate, str(self.graph), "")
        sizes, runner = self._opened_sizes(component), self._runner_for(component, batch.feeds)
        answers = run_split(batch.feeds, sizes, NUMPY, runner) if sizes else runner(batch.feeds)
        write_probes(self.folder / LARGE_BATCH_FILE, [Probe(batch.label, answers)])

    def time_calls(self, calls: int) -> float:
        """Seconds of `calls` calls on the probes, one after the other; where several, after one that is not counted.

        By that one the caches are this process's own again, and threads of others that wait by spinning have stopped.
        """
        ready = [self._bind_call(probe.feeds, self._get_runner()) for probe in self.probes[:calls]]
        if calls > 1:
            ready[0]()
        self._synchronize()
        began = perf_counter()
        for call in range(calls):
            ready[call % len(ready)]()
        self._synchronize()
        return perf_counter() - began

    def time_batch(self, rows: int, calls: int) -> float:
        """Seconds a row, of batches of so many rows: the least of `calls`, which one precedes that is not counted."""
        component = candidate_component(self.task.candidate, str(self.graph), "")
        sizes = self._opened_sizes(component)
        runs = []
        for size in [one for _, one in split_batch(rows, sizes)] if sizes else [rows]:
            feeds = {n: np.resize(array, (size, *array.shape[1:])) for n, array in self.probes[0].feeds.items()}
            runs.append(self._bind_call(feeds, self._runner_for(component, feeds)))
        taken = []
        for _ in range(calls + 1):
            began = perf_counter()
            for run in runs:
                run()
            self._synchronize()
            taken.append(perf_counter() - began)
        return min(taken[-calls:]) / rows

    def generate(self, requests: list[dict[str, Any]]) -> None:
        """Draw the requests, one after the other; write pictures and final latents."""
        results = [self._generate_one(_request_from_json(request)) for request in requests]
        read = self._get_pipeline().arrays.to_numpy
        temporary = self.folder / f".{PICTURES_FILE}"
        with temporary.open("wb") as file:
            pictures = np.array([result.image for _, result in results])
            np.savez(file, pictures=pictures, latents=np.array([read(draft.latents) for draft, _ in results]))
        temporary.replace(self.folder / PICTURES_FILE)

    def time_picture(self, request: dict[str, Any]) -> float:
        """Seconds of one picture."""
        asked = _request_from_json(request)
        self._get_pipeline()
        began = perf_counter()
        self._generate_one(asked)
        return perf_counter() - began

    def _opened_sizes(self, component: Component) -> tuple[int, ...]:
        """Of batches that it is open for, where these are several; empty: any."""
        return (
            ()
            if reopens_per_batch_size(component) or "axes" in component.settings
            else component_batch_sizes(component)
        )

    def _runner_for(self, component: Component, feeds: Feeds) -> Runner:
        """The network that is open or, where that takes no batch of this size, another one, opened for these."""
        is_fixed = component.static and component.streams == 1 and "axes" not in component.settings
        is_fixed = is_fixed and reopen_scope(component.backend, component.settings) == "shapes"
        own, shapes = ({name: array.shape for name, array in fed.items()} for fed in (self.probes[0].feeds, feeds))
        if not is_fixed or shapes == own:
            return self._get_runner()
        if self._resized_runner is None or self._resized_runner[0] != shapes:
            self._resized_runner = shapes, self._wrap_tiled(self._open_network(component, feeds))
        return self._resized_runner[1]

    def _open_network(self, component: Component, feeds: Feeds) -> Runner:
        """A network that takes these; threads are the candidate's own where it names them: that is what it is about."""
        shapes = {name: array.shape for name, array in feeds.items()}
        if tile := self.task.candidate.options.get("tile"):
            most = int(tile) // self._manifest().latent.downscale
            shapes = {n: (1, *shape[1:-2], *(min(most, side) for side in shape[-2:])) for n, shape in shapes.items()}
        options = RunnerOptions(threads=component.threads or self.task.threads)
        return open_component(self.folder, component, shapes, options)

    def _wrap_tiled(self, runner: Runner) -> Runner:
        tile = self.task.candidate.options.get("tile")
        if tile is None:
            return runner
        return TiledDecoder(runner, int(tile), self._manifest().latent.downscale)

    def _generate_one(self, request: ImageRequest) -> tuple[ImageTrajectory, ImageResult]:
        pipeline = self._get_pipeline()
        draft = pipeline.start(request)
        while not draft.is_done:
            pipeline.advance([draft])
        return draft, pipeline.finish(draft)

    def _run_probe(self, probe: Probe) -> Any:
        return self._get_runner()(probe.feeds)

    def _get_runner(self) -> Runner:
        if self._runner is None:
            self._pipeline = None
            self.open()
        assert self._runner is not None
        return self._runner

    def _bind_call(self, feeds: Feeds, runner: Runner) -> Callable[[], object]:
        """A call as a walk makes it: of a U-Net with arrays that lie where it runs, where its engine has any."""
        if self._arrays is NUMPY or not isinstance(runner, GraphRunner):
            return partial(runner, feeds)
        with translate_errors(self.task.candidate.backend, self.graph, "run"):
            return partial(runner.run_on_device, {name: self._arrays.to_device(array) for name, array in feeds.items()})

    def _synchronize(self) -> None:
        """A GPU that was asked answers later, and tells later what went wrong."""
        with translate_errors(self.task.candidate.backend, self.graph, "run"):
            self._arrays.synchronize()

    @cached_property
    def _arrays(self) -> Arrays:
        candidate = self.task.candidate
        if candidate.component != UNET:
            return NUMPY
        own: Arrays | None = device_arrays(candidate.backend, candidate_component(candidate, "", "").settings)
        return own or NUMPY

    def _get_pipeline(self) -> Pipeline:
        if self._pipeline is None:
            task, components = self.task, dict(self.task.components)
            if task.graph:
                own = candidate_component(task.candidate, str(self.graph), components[task.candidate.component].weights)
                components[task.candidate.component] = own
            self._runner = self._resized_runner = (
                None  # the pipeline opens the network again; twice at once it may not fit
            )
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
        """Of the pipeline as it was before anything was chosen for it, which may have been a student."""
        directory = Path(self.task.pipeline)
        return original_manifest(directory) if is_sweep_directory(directory) else read_manifest(directory)


def _request_from_json(document: dict[str, Any]) -> ImageRequest:
    interval = document.get("guidance_interval")
    return ImageRequest(**{**document, "guidance_interval": tuple(interval) if interval else None})


def main() -> None:
    """Answer until the standard input ends."""
    # A library that prints must not be taken for an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    die_with_parent()
    child = CandidateWorker(read_task(Path(sys.argv[1])))
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        try:
            answer = "= " + json.dumps(getattr(child, command)(*arguments))
        except StillhouseError as error:
            answer = "! " + json.dumps([error.given, error.allowed, error.fix])
            traceback.print_exc()
        except MemoryError:
            answer = "! " + json.dumps(["it ran out of memory", None, None])
            traceback.print_exc()
        except Exception as error:
            answer = "! " + json.dumps([f"{type(error).__name__}: {error}".splitlines()[0], None, None])
            traceback.print_exc()
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    main()
