"""The process in which one candidate lives: `python -m stillhouse.accelerate.child TASK`.

It answers each line of its standard input, a JSON list of a command and its arguments, with one line: `= ` and the
answer, or `! ` and what went wrong. Whatever a runtime does to the process stays in here.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from stillhouse.accelerate.build import build, component_of
from stillhouse.accelerate.probe import Probe, read_probes, write_probes
from stillhouse.accelerate.task import Task, read_task
from stillhouse.backends.runner import Runner, RunnerOptions
from stillhouse.core import ImageRequest
from stillhouse.errors import StillhouseError
from stillhouse.models.pipeline import Draft, Pipeline
from stillhouse.models.runners import open_component

_PR_SET_PDEATHSIG = 1
_QUICK = 3.0
"""Seconds of opening up to which a network is opened once more only to count its operations."""
OUTPUTS, PICTURES = "outputs.npz", "pictures.npz"


class Child:
    """A candidate in the making: each method is a command, and returns what JSON can say."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.folder = Path(task.folder)
        self.probes: Sequence[Probe] = read_probes(Path(task.probes)) if task.probes else []
        self.graph = Path(task.graph)
        self._runner: Runner | None = None
        self._pipeline: Pipeline | None = None

    def build(self) -> dict[str, Any]:
        """Make the artefact: seconds, and the graph that is to be opened."""
        self.graph, seconds = build(self.task.candidate, self.graph, Path(self.task.artefact), self.probes)
        return {"seconds": seconds, "graph": str(self.graph)}

    def use(self, graph: str) -> None:
        """Open this graph, which was built before."""
        self.graph = Path(graph)

    def open(self) -> dict[str, Any]:
        """Open the network and run it once: seconds, executed precision, census."""
        began = perf_counter()
        feeds = self.probes[0].feeds
        component = component_of(self.task.candidate, str(self.graph), "")
        shapes = {name: array.shape for name, array in feeds.items()}
        # Threads are the candidate's own where it names them: that is what it is about.
        threads = component.threads or self.task.threads
        options = RunnerOptions(threads=threads)
        self._runner = open_component(self.folder, component, shapes, options)
        opened = perf_counter()
        self._runner(feeds)
        ran = perf_counter()
        counted = self._runner
        if component.backend == "onnxruntime" and not counted.census and opened - began < _QUICK:
            counting = replace(component, settings={**component.settings, "census": "1"})
            counted = open_component(self.folder, counting, shapes, options)
        return {
            "seconds": opened - began,
            "first": ran - opened,
            "executed": counted.precision,
            "census": dict(counted.census),
        }

    def outputs(self) -> None:
        """Run every probe and write what came back."""
        answers = [Probe(probe.label, self._run(probe)) for probe in self.probes]
        write_probes(self.folder / OUTPUTS, answers)

    def time(self, calls: int) -> float:
        """Seconds of `calls` calls on the probes, one after the other."""
        began = perf_counter()
        for call in range(calls):
            self._run(self.probes[call % len(self.probes)])
        return perf_counter() - began

    def batch(self, rows: int, calls: int) -> float:
        """Seconds a row, of batches of so many rows, the least of `calls`."""
        assert self._runner is not None
        feeds = {n: np.resize(array, (rows, *array.shape[1:])) for n, array in self.probes[0].feeds.items()}
        taken = []
        for _ in range(calls + 1):
            began = perf_counter()
            self._runner(feeds)
            taken.append(perf_counter() - began)
        return min(taken[1:]) / rows

    def draw(self, requests: list[dict[str, Any]], together: int = 1) -> float:
        """Draw the requests, `together` in a batch; write pictures and final latents; the seconds of all."""
        pipeline = self._opened()
        asked = [_request(request) for request in requests]
        began = perf_counter()
        drafts: list[Draft] = []
        images = []
        for first in range(0, len(asked), together):
            batch = [pipeline.start(request) for request in asked[first : first + together]]
            while pending := [draft for draft in batch if not draft.is_done]:
                pipeline.advance(pending)
            images += [pipeline.finish(draft).image for draft in batch]
            drafts += batch
        seconds = perf_counter() - began
        temporary = self.folder / f".{PICTURES}"
        with temporary.open("wb") as file:
            np.savez(file, pictures=np.array(images), latents=np.array([draft.latents for draft in drafts]))
        temporary.replace(self.folder / PICTURES)
        return seconds

    def picture(self, request: dict[str, Any]) -> float:
        """Seconds of one picture."""
        pipeline, asked = self._opened(), _request(request)
        began = perf_counter()
        draft = pipeline.start(asked)
        while not draft.is_done:
            pipeline.advance([draft])
        pipeline.finish(draft)
        return perf_counter() - began

    def _run(self, probe: Probe) -> Any:
        if self._runner is None:
            self._pipeline = None
            self.open()
        assert self._runner is not None
        return self._runner(probe.feeds)

    def _opened(self) -> Pipeline:
        if self._pipeline is None:
            task, components = self.task, dict(self.task.components)
            if task.graph:
                own = component_of(task.candidate, str(self.graph), components[task.candidate.component].weights)
                components[task.candidate.component] = own
            self._runner = None  # the pipeline opens the network again; twice at once it may not fit
            self._pipeline = Pipeline(
                Path(task.pipeline),
                components=components,
                defaults=task.defaults,
                step_cache=task.step_cache,
                threads=task.threads,
            )
        return self._pipeline


def _request(told: dict[str, Any]) -> ImageRequest:
    interval = told.get("guidance_interval")
    return ImageRequest(**{**told, "guidance_interval": tuple(interval) if interval else None})


def main() -> None:
    """Answer until the standard input ends."""
    # A library that prints must not be taken for an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _die_with_parent()
    child = Child(read_task(Path(sys.argv[1])))
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


def _die_with_parent() -> None:
    """On Linux, a parent that is killed takes the child with it, even in the middle of a long call (prctl(2))."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
