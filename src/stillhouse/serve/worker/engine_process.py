"""The worker process of a server: `python -m stillhouse.serve.worker.engine_process`.

The main thread runs the engine: it receives commands, runs steps and sends events. A second thread decodes pictures.
The process ends when the server closes the channel or dies.
"""

import os
import signal
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from stillhouse.core import ImageRequest
from stillhouse.errors import StillhouseError
from stillhouse.pipelines.load import load
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.pipelines.tokenizers import PromptTruncated
from stillhouse.serve.engine.cost import CostModel, LatencyCurve
from stillhouse.serve.engine.engine import Engine, StepOutput
from stillhouse.serve.engine.executor import (
    PipelineCache,
    PipelineExecutor,
    measure_latency_curve,
)
from stillhouse.serve.engine.job import BatchKey, Job
from stillhouse.serve.engine.output import failed_output
from stillhouse.serve.engine.policy import POLICIES
from stillhouse.serve.worker.decode_thread import DecodeThread
from stillhouse.serve.worker.locate_pipeline import locate_pipeline
from stillhouse.serve.worker.messages import (
    Cancel,
    Command,
    Event,
    Ready,
    StepReport,
    StepStats,
    Submit,
    WorkerConfig,
    WorkerFailed,
)
from stillhouse.workers.channel import Channel, TransportClosed
from stillhouse.workers.process import connect_to_parent

REPORT_SECONDS = 0.1
"""Longest time in seconds until steps are reported. Any other event is sent with the steps so far, so the last step of
a picture is reported with the picture. A separate report would wake the server while the picture is decoded."""


@dataclass(slots=True)
class Worker:
    """The main loop of a worker process, which serves one device.

    Args:
        channel: commands from the server, and events to it.
        engine: batches and advances the requests.
        pipelines: the pipelines, by name.
    """

    channel: Channel[Event, WorkerConfig | Command]
    engine: Engine
    pipelines: PipelineCache
    _steps: list[StepStats] = field(default_factory=list)
    _unreported_since: float = 0.0
    _decoder: DecodeThread = field(init=False)
    _report_lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self._decoder = DecodeThread(self._send)

    def run(self) -> None:
        """Serve requests until the server is gone."""
        self._decoder.start()
        with suppress(TransportClosed):
            while True:
                self._receive()
                if self.engine.jobs:
                    self._step()

    def _receive(self) -> None:
        """Handle every command that has arrived; wait for a command if there are no requests."""
        while self.channel.transport.wait(0 if self.engine.jobs else None):
            self._handle_command(self.channel.receive())

    def _handle_command(self, command: WorkerConfig | Command) -> None:
        if isinstance(command, Submit):
            self._submit(command)
        elif isinstance(command, Cancel):
            self._decoder.drop_preview(command.id)
            if output := self.engine.cancel(command.id):
                self._send(output)
        else:
            raise ValueError("the server sent a second WorkerConfig")

    def _submit(self, command: Submit) -> None:
        try:
            job = make_job(command, self.pipelines[command.batch_key.pipeline], self.engine.clock())
            self.engine.submit(job)
        except StillhouseError as error:
            self._send(failed_output(command.id, error))

    def _step(self) -> None:
        began = time.monotonic()
        step = self.engine.step()
        if step.jobs:
            stats = self._step_stats(step)
            with self._report_lock:
                self._unreported_since = self._unreported_since if self._steps else began
                self._steps.append(stats)
        for job in step.jobs:
            if job.index in job.preview_steps and not job.is_done:
                self._decoder.submit_preview(job, self.pipelines[job.batch_key.pipeline])
        for job in step.finished:
            self._decoder.submit(job, self.pipelines[job.batch_key.pipeline])
        for output in step.outputs:
            self._decoder.drop_preview(output.id)
            self._send(output)
        if self._steps and began - self._unreported_since >= REPORT_SECONDS:
            self._send()
        if any(job.index == 1 for job in step.jobs):
            self.pipelines.evict()  # the first step of a job may open networks, which may exceed the memory limit

    def _step_stats(self, step: StepOutput) -> StepStats:
        batch_key = step.jobs[0].batch_key
        rows = sum(job.step_plan.rows[job.index - 1] for job in step.jobs)
        slowdown = self.engine.cost_model.slowdowns.get(batch_key, 1.0)
        return StepStats([job.id for job in step.jobs], batch_key, rows, step.seconds, slowdown)

    def _send(self, *events: Event) -> None:
        """Send a report of the steps that were not reported yet, then the events."""
        with self._report_lock:
            steps, self._steps = self._steps, []
            for event in (StepReport(steps), *events) if steps else events:
                self.channel.send(event)


def make_job(command: Submit, pipeline: Pipeline, now: float) -> Job:
    """Return the job of a `Submit`; `now` is the time on the engine's clock."""
    return Job(
        command.id,
        command.tier,
        command.key,
        command.batch_key,
        command.step_plan,
        command.resolved,
        expires=float("inf") if command.expires_in is None else now + command.expires_in,
        format=command.format,
        preview_steps=preview_steps(command.previews, len(command.step_plan.rows)),
        is_prompt_truncated=not fits_tokenizers(pipeline, command.resolved.request),
    )


def fits_tokenizers(pipeline: Pipeline, request: ImageRequest) -> bool:
    """Return whether no tokenizer truncates a prompt of the request."""
    texts = (request.prompt, request.negative_prompt)
    return all(tokenizer.fits(text) for tokenizer in pipeline.tokenizers.values() for text in texts)


def preview_steps(count: int, evaluations: int) -> frozenset[int]:
    """Return the numbers of completed evaluations after which previews are made.

    Args:
        count: number of previews, evenly spread.
        evaluations: number of evaluations of the picture; no preview is made before the first or after the last.

    >>> sorted(preview_steps(3, 8)), sorted(preview_steps(3, 2))
    ([2, 4, 6], [1])
    """
    return frozenset(part * evaluations // (count + 1) for part in range(1, count + 1)) - {0}


def measure_curves(pipelines: PipelineCache) -> dict[BatchKey, LatencyCurve]:
    """Measure the latency of every pipeline at its default size."""
    curves = {}
    for name in pipelines:
        pipeline = pipelines[name]
        defaults = pipeline.manifest.defaults
        batch_key = BatchKey(name, defaults.width, defaults.height)
        curves[batch_key] = measure_latency_curve(pipeline, batch_key)
    return curves


def main() -> None:
    """Serve requests until the server is gone."""
    channel: Channel[Event, WorkerConfig | Command] = connect_to_parent(WorkerConfig | Command)
    # Service managers send SIGTERM to all processes of a service. A worker ignores it, because the server decides when
    # the worker ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # The warning contains a part of the prompt, and prompts must not be logged. The client is told in its response.
    warnings.simplefilter("ignore", PromptTruncated)
    with suppress(TransportClosed):
        config = channel.receive()
        assert isinstance(config, WorkerConfig)
        _serve(channel, config)


def _serve(channel: Channel[Event, WorkerConfig | Command], config: WorkerConfig) -> None:
    """Open and measure the pipelines, and run the engine."""
    pipelines = PipelineCache(lambda name: _open_pipeline(config, name), tuple(config.pipelines), config.memory)
    try:
        curves = dict(config.curves) or measure_curves(pipelines)
    except StillhouseError as error:
        channel.send(WorkerFailed(str(error)))
        return
    channel.send(Ready(list(curves.items())))
    executor = PipelineExecutor(pipelines)
    Worker(channel, Engine(executor, POLICIES[config.policy], CostModel(curves), time.monotonic), pipelines).run()


def _open_pipeline(config: WorkerConfig, name: str) -> Pipeline:
    return load(
        locate_pipeline(config.pipelines[name]),
        backend=config.backend,
        precision=config.precision,
        threads=config.threads,
        cache=Path(config.cache) if config.cache else None,
    )


if __name__ == "__main__":
    main()
    # A usual exit could block, because runtimes may wait for their threads. No output is pending.
    os._exit(0)
